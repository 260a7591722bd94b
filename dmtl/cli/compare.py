"""`dmtl compare`: runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, require_page, say, write_files

if TYPE_CHECKING:
    from dmtl.report.compare import Comparison
    from dmtl.report.data import Value

COLUMNS = 3  # methods beside the baseline in one table; more get a table each


@dataclass(frozen=True)
class Compare:
    """Put runs side by side: metrics over seeds, Delta_MTL against one of them, steps and training time.

    Runs that differ in their seed alone are one method, named by what differs from the others. An unfinished
    run counts as of its last evaluation.
    """

    runs: Annotated[list[str], *positional("RUN ...")]
    """Run folders, or folders of runs (all below them are read)."""
    baseline: str | None = None
    """A run, or a method by the name it has here; default: the first RUN's method, of a folder of several the
    first without diffusion."""
    out: str | None = None
    """Also write an HTML page, with curves."""
    csv: str | None = None
    """Also write the table as CSV."""
    json: str | None = None
    """Also write all figures as JSON."""


def main(arguments: list[str]) -> int:
    args = parse(Compare, arguments, "compare")
    from dmtl.report import compare_out
    from dmtl.report.compare import compare

    require_page(args.out)
    comparison = compare(args.runs, args.baseline)
    for letter, method in comparison.methods.items():
        say(f"{letter}  {method.name}" + (" (baseline)" if method is comparison.baseline else ""))
    console.print(methods_table(comparison))
    baseline, *others = comparison.methods
    for begin in range(0, max(len(others), 1), COLUMNS):
        console.print(metrics_table(comparison, [baseline, *others[begin : begin + COLUMNS]]))
    for remark in comparison.remarks:
        say(remark)
    if comparison.warning:
        console.print(Text(comparison.warning, style="bold red"), soft_wrap=True)
    write_files(
        comparison,
        (args.out, compare_out.write_page),
        (args.csv, compare_out.write_csv),
        (args.json, compare_out.write_json),
    )
    return 0


def methods_table(comparison: Comparison) -> Table:
    """One row a method: its letter, Delta_MTL and what it was taken over, seeds, steps, time."""
    from dmtl.report.compare import summary

    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "Delta_MTL", "over", "seeds", "steps", "training"):
        right = name in ("Delta_MTL", "steps", "training")
        shown.add_column(name, justify="right" if right else "left", no_wrap=name == "Delta_MTL")
    for row in summary(comparison):
        gain = comparison.gains.get(row["letter"])
        delta = "" if gain is None else _figure(gain.value, "+.2f", " %")
        rest = (row["basis"], row["seeds"], row["steps"], row["time"])
        shown.add_row(row["letter"], delta, *rest)
    return shown


def metrics_table(comparison: Comparison, letters: Sequence[str]) -> Table:
    """Metrics by task, a column for each method of `letters`; Delta_MTL last."""
    shown = Table()
    shown.add_column("task")
    shown.add_column("metric")
    for letter in letters:
        shown.add_column(letter, justify="right")
    task = None
    for row in comparison.rows():
        if task not in (None, row.task):
            shown.add_section()
        mark = (" ↑" if row.higher_is_better else " ↓") if row.primary else ""
        cells = [_figure(row.values[x], ".4g") if x in row.values else "" for x in letters]
        first = "" if task == row.task else row.task
        shown.add_row(Text(first), Text(row.metric + mark), *cells, style="bold" if row.primary else None)
        task = row.task
    shown.add_section()
    gains = [comparison.gains.get(letter) for letter in letters]
    cells = ["" if gain is None else _figure(gain.value, "+.2f") for gain in gains]
    shown.add_row("Delta_MTL", "% ↑", *cells, style="bold")
    return shown


def _figure(value: Value, form: str, unit: str = "") -> str:
    from dmtl.report.data import mean_of, spread_of

    mean, spread = mean_of(value), spread_of(value)
    if not math.isfinite(mean):
        return "n/a"
    return f"{mean:{form}}" + ("" if spread is None else f" ± {spread:.2g}") + unit
