"""What several commands share: progress, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from rich.text import Text

from dmtl.errors import ConfigError

console = Console()


def say(text: object) -> None:
    """One line as it is: not wrapped, not coloured, and brackets in a path are no markup."""
    console.print(str(text), soft_wrap=True, highlight=False, markup=False)


def require_page(out: str | None) -> None:
    """ConfigError for the name of a page that says it is something else; before anything is computed."""
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out must end in .html, got {out!r}")


def write_files(content: object, *outputs: tuple[str | None, Callable[[str, Any], object]]) -> None:
    """Calls `write(path, content)` for every (path, write) whose path is not None, and says so."""
    for path, write in outputs:
        if path is not None:
            write(path, content)
            say(f"wrote {path}")


def bar(label: str) -> Callable[[Sequence], Iterable]:
    """A progress bar around a loop over a sequence."""

    def track(items: Sequence) -> Iterable:
        if not items:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            yield from progress.track(items, description=label)

    return track


def mib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**20:,.0f} MiB"


@contextmanager
def training_bars() -> Iterator[Callable[[str], Callable[[int, int, float], None]]]:
    """Yield a function `label -> on_step(step, steps, loss)`.

    Each label gets a bar with the loss and the time to finish.
    """
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

        def new_bar(label: str) -> Callable[[int, int, float], None]:
            bar = progress.add_task(label, total=None, loss="-")

            def on_step(step: int, steps: int, loss: float) -> None:
                text = "-" if math.isnan(loss) else f"{loss:.3g}"
                progress.update(bar, completed=step, total=steps, loss=text)

            return on_step

        yield new_bar


@contextmanager
def training_progress(label: str) -> Iterator[Callable[[int, int, float], None]]:
    """Yield the `on_step` of a single bar."""
    with training_bars() as new_bar:
        yield new_bar(label)


def metric_table(
    title: str,
    methods: Mapping[str, Mapping[str, Mapping[str, float]]],
    directions: Mapping[str, tuple],
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    """All metrics of several methods, {method: {task: {metric: value}}}, but for those per class; with
    `notes`, {task: {metric: words}}, also what they mean."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("task")
    table.add_column("metric", no_wrap=True)
    for method in methods:
        table.add_column(method, justify="right")
    if notes is not None:
        table.add_column("meaning")
    first = next(iter(methods.values()))
    for task in first:
        for metric in (m for m in first[task] if "/" not in m):
            primary = task in directions and directions[task][0] == metric
            mark = (" ↑" if directions[task][2] else " ↓") if primary else ""
            values = (methods[m].get(task, {}).get(metric) for m in methods)
            row = ["" if value is None else f"{value:.4g}" for value in values]
            row += [] if notes is None else [notes.get(task, {}).get(metric, "")]
            table.add_row(task, metric + mark, *row, style="bold" if primary else None)
    return table


def final_and_initial(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict]:
    """One run's metrics as columns of `metric_table`: final maps, and initial ones if scored."""
    final = {task: values for task, values in metrics.items() if not task.startswith("initial/")}
    initial = {task.removeprefix("initial/"): v for task, v in metrics.items() if task.startswith("initial/")}
    return {"final map": final, "initial map": initial} if initial else {"value": final}
