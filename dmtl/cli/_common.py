"""Helpers shared by commands: output, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dmtl.report.runs.comparison import Delta
    from dmtl.report.runs.methods import Method

console = Console()


def say(text: object, where: Console = console) -> None:
    """Print one line as it is: no wrapping, no colour, and brackets in a path are not markup."""
    where.print(str(text), soft_wrap=True, highlight=False, markup=False)


def write_files(content: object, *outputs: tuple[str | None, Callable[[str, Any], object]]) -> list[str]:
    """Call `write(path, content)` for every (path, write) whose path is not None.

    Returns:
        The lines that say so, to be printed after the tables: a terminal may fail, files must not.
    """
    lines = []
    for path, write in outputs:
        if path is not None:
            write(path, content)
            lines.append(f"wrote {path}")
    return lines


def table_of(
    columns: Iterable[str], rows: Iterable[Iterable[str]] = (), title: str = "", left: int = 1, **style: Any
) -> Table:
    """Return a table of plain text; the first `left` columns are aligned left, the others right."""
    table = Table(title=Text(title) if title else None, title_justify="left", **style)
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if place < left else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def facts_of(rows: Iterable[tuple[str, str]], title: str = "", width: int | None = None) -> Table:
    """Return a table of names, in a column of at least `width`, and texts."""
    table = table_of(("", ""), rows, title, 2, show_header=False, box=None, padding=(0, 2, 0, 0))
    table.columns[0].min_width = width
    return table


def metric_table(
    methods: Mapping[str, Method],
    title: str = "",
    notes: Mapping[str, Mapping[str, str]] | None = None,
    deltas: Mapping[str, Delta] | None = None,
) -> Table:
    """Return a table of all metrics except per-class ones, with a column for each method.

    Args:
        notes: what metrics mean, {task: {metric: words}}.
        deltas: Delta_MTL by method, for the last row.
    """
    from dmtl.report.runs.comparison import metric_rows
    from dmtl.report.runs.values import text_of

    table = table_of(["task", "metric", *methods], title=title, left=2)
    table.columns[1].no_wrap = True
    if notes is not None:
        table.add_column("meaning")
    previous = None
    for row in metric_rows(methods):
        if previous not in (None, row.task):
            table.add_section()
        mark = (" ↑" if row.higher_is_better else " ↓") if row.primary else ""
        cells = [text_of(row.values[label]) if label in row.values else "" for label in methods]
        cells += [] if notes is None else [notes.get(row.task, {}).get(row.metric, "")]
        task = Text("" if previous == row.task else row.task)
        table.add_row(task, Text(row.metric + mark), *cells, style="bold" if row.primary else None)
        previous = row.task
    if deltas:
        table.add_section()
        cells = [text_of(deltas[label].value, 2, sign=True) if label in deltas else "" for label in methods]
        table.add_row("Delta_MTL", "% ↑", *cells, style="bold")
    return table


def source_table(
    sources: Mapping[str, Mapping[str, Mapping[str, float]]],
    metrics: Mapping[str, Mapping[str, float]],
    primary: Mapping[str, tuple[str, float, bool]],
) -> Table:
    """Return a table of every task's main metric on the images of each source, and of all."""
    from dmtl.report.runs.values import text_of

    rows = []
    for task, (metric, _, up) in primary.items():
        found = [*(values.get(task, {}) for values in sources.values()), metrics[task]]
        cells = (text_of(values[metric]) if metric in values else "" for values in found)
        rows.append((task, f"{metric} {'↑' if up else '↓'}", *cells))
    return table_of(("task", "metric", *sources, "all"), rows, "By source", left=2)


def final_and_initial(
    metrics: Mapping[str, Mapping[str, float]], primary: Mapping[str, tuple[str, float, bool]]
) -> dict[str, Method]:
    """Return one run's metrics as columns of `metric_table`: final maps, and initial ones if scored."""
    from dmtl.report.runs.methods import Method
    from dmtl.report.runs.run import Run

    method = Method("final map", [Run(Path(), metrics, primary)])
    initial = method.initial()
    return {"value": method} if initial is None else {"final map": method, "initial map": initial}
