"""What several commands share: parsing, progress, tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

T = TypeVar("T")
console = Console()


def parse(kind: Callable[..., T], arguments: Sequence[str], command: str, **options) -> T:
    """`arguments` as `kind` (a dataclass), with help made from its docstrings."""
    return tyro.cli(kind, args=list(arguments), prog=f"dmtl {command}", **options)


@contextmanager
def training_progress(label: str):
    """Yields `on_step(step, steps, loss)` that moves a bar with the loss and the time to finish."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3g}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(label, total=None, loss=float("nan"))
        yield lambda step, steps, loss: progress.update(bar, completed=step, total=steps, loss=loss)


def metric_table(title: str, methods: Mapping[str, Mapping[str, Mapping[str, float]]], directions: Mapping[str, tuple]) -> Table:
    """All metrics of several methods: {method: {task: {metric: value}}}; per-class figures are left to the JSON files."""
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for method in methods:
        table.add_column(method, justify="right")
    first = next(iter(methods.values()))
    for task in first:
        for metric in (m for m in first[task] if "/" not in m):
            primary = task in directions and directions[task][0] == metric
            mark = (" ↑" if directions[task][2] else " ↓") if primary else ""
            row = [f"{methods[m][task][metric]:.4g}" if task in methods[m] else "" for m in methods]
            table.add_row(task, metric + mark, *row, style="bold" if primary else None)
    return table


def model_folder(path: str) -> Path:
    """A model folder: the path itself, or `model/` in a run's folder."""
    folder = Path(path)
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder
