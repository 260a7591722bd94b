"""`dmtl table`: the paper's tables from runs, beside the published figures."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, require_page, say, write_files

if TYPE_CHECKING:
    from dmtl.report.table import ResultTable

WIDTH = 100  # columns of the terminal that every table fits
NARROW = 5  # columns from which on a spread stands below its figure


@dataclass(frozen=True)
class Table:
    """The paper's tables from runs, one for each benchmark and label setting, beside the published figures;
    without RUN the published figures alone.

    A run's figures are those of RUN/eval.json (dmtl eval RUN --json RUN/eval.json) where it is there, else of
    its metrics.json. Single-task runs, one for each task and seed, are one row, STL; so are runs that differ
    in their seed alone.
    """

    runs: Annotated[list[str], *positional("[RUN ...]")] = field(default_factory=list)
    """Run folders, or folders of runs (all below them are read)."""
    reference: list[str] = field(default_factory=list)
    """Runs that Delta_MTL is taken against, stored single-task runs say; default: STL among RUN, else MTL."""
    benchmark: str | None = None
    """Only this benchmark ("pascal-context", "nyud-13", "nyud-40", "cityscapes-7", "cityscapes-raw",
    "cityscapes-19"), which all runs are taken to be of. Default: as their tasks, class counts and names of
    images say."""
    exact: tyro.conf.FlagCreatePairsOff[bool] = False
    """Saliency by its exact maxF instead of the paper's variant, which published figures are of."""
    out: str | None = None
    """Also write an HTML page."""
    csv: str | None = None
    """Also write all figures as CSV."""
    json: str | None = None
    """Also write the tables as JSON."""
    latex: str | None = None
    """Also write the tables as LaTeX (booktabs)."""


def main(arguments: list[str]) -> int:
    args = parse(Table, arguments, "table")
    from dmtl.errors import ConfigError
    from dmtl.report import table_out
    from dmtl.report.table import published_tables, tables

    require_page(args.out)
    if args.reference and not args.runs:
        raise ConfigError("--reference needs RUN, got none")
    if args.runs:
        found = tables(args.runs, args.reference, args.benchmark, args.exact)
    else:
        found = published_tables(args.benchmark)
        if not found:
            raise ConfigError(f"--benchmark {args.benchmark} has no published figures, expected RUN")
    for table in found:
        show(table)
    write_files(
        found,
        (args.out, table_out.write_page),
        (args.csv, table_out.write_csv),
        (args.json, table_out.write_json),
        (args.latex, table_out.write_latex),
    )
    return 0


def show(table: ResultTable) -> None:
    """Prints a table, its sources and what is to be said about it."""
    console.print(Text(table.heading, style="bold"))
    shown = rich_table(table)
    # Where the terminal is too narrow its lines break; fitted to it, the table would lose columns.
    Console(file=console.file, width=max(console.width, WIDTH)).print(shown)
    for number, source in enumerate(table.sources, start=1):
        _line(f"[{number}]", source)
    for remark in table.remarks:
        _line(*(("*", remark[2:]) if remark.startswith("* ") else ("-", remark)))
    console.print()


def rich_table(table: ResultTable) -> RichTable:
    """One row a row; methods are named once, measured rows stand below their published ones."""
    from dmtl.report.table_out import LOST, delta_parts, lost, mark, origin, parts

    shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.add_column("method", min_width=10)
    if table.measured:
        shown.add_column("seeds", justify="right")
    shown.add_column("from", no_wrap=True)
    for column in table.columns:
        head = f"{column.task}\n{column.label} {'↑' if column.higher_is_better else '↓'}"
        shown.add_column(Text(head), justify="right", no_wrap=True)
    shown.add_column("Δ MTL\n% ↑", justify="right", no_wrap=True)
    below = len(table.columns) > NARROW
    for row in table.rows:
        style = "dim" if row.published and table.measured else ""
        cells = [Text(row.name + mark(row)), Text(origin(table, row))]
        if table.measured:
            cells.insert(1, Text("" if row.published else str(len(row.by_seed))))
        if lost(row):
            shown.add_row(*cells, *[Text(LOST)] * (len(table.columns) + 1), style=style)
            continue
        for column in table.columns:
            best = any(row is other for other in table.best(column, row.published))
            cells.append(_cell(parts(row, column), below, "bold" if best else ""))
        delta = Text("ref.", style="dim") if row is table.reference else _cell(delta_parts(table, row), below)
        shown.add_row(*cells, delta, style=style)
    return shown


def _cell(texts: tuple[str, str] | None, below: bool, style: str = "") -> Text:
    if texts is None:
        return Text("-")
    mean, spread = texts
    if not spread:
        return Text(mean, style=style)
    return (
        Text(mean, style=style).append("\n±" if below else "±", "not bold dim").append(spread, "not bold dim")
    )


def _line(label: str, text: str) -> None:
    """A remark, wrapped beside its label."""
    indent = " " * (len(label) + 1)
    say(textwrap.fill(f"{label} {text}", console.width, subsequent_indent=indent, break_on_hyphens=False))
