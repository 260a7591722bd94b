"""What several commands share: progress, tables, model folders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console()


@contextmanager
def training_progress(label: str):
    """Yields `on_step(step, steps, loss)` that moves a bar with the loss and the time to finish."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(label, total=None, loss="-")

        def on_step(step: int, steps: int, loss: float) -> None:
            progress.update(bar, completed=step, total=steps, loss="-" if math.isnan(loss) else f"{loss:.3g}")

        yield on_step


def metric_table(
    title: str, methods: Mapping[str, Mapping[str, Mapping[str, float]]], directions: Mapping[str, tuple]
) -> Table:
    """All metrics of several methods, {method: {task: {metric: value}}}, but for those per class."""
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
