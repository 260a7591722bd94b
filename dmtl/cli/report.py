"""`dmtl report`: compare finished runs on the terminal and as a page; the paper's tables."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmtl.cli._arguments import check_json, parse, positional
from dmtl.cli._common import console, metric_table, say, table_of, write_files
from dmtl.errors import ConfigError

if TYPE_CHECKING:
    from dmtl.report.paper.table import Cell, PaperTable
    from dmtl.report.runs.comparison import Comparison

COLUMNS = 3  # methods next to the baseline in one table; with more, each gets a table
WIDTH = 100  # terminal columns that fit every table of the paper
NARROW = 5  # from this many columns on, a spread is below its result
ONLY_PAPER = ("benchmark", "exact", "latex")
ONLY_RUNS = ("pictures", "samples")


@dataclass(frozen=True)
class Report:
    """Show one run or compare several: metrics over seeds, Delta_MTL against a baseline, steps and time. With
    --out, also write a page with labels, curves and pictures of every denoising step.

    Runs that differ only in their seed are one method, named by the settings that differ from other methods.
    An unfinished run counts with its last evaluation.

    With --paper, print the paper's tables, one for each benchmark and label setting, with the published
    results next to those of RUN; without RUN, print only the published results. Results of a run then come
    from RUN/eval.json (dmtl eval RUN --json RUN/eval.json) if it exists. Single-task runs, one for each task
    and seed, form one row, STL.
    """

    runs: Annotated[list[str], *positional("[RUN ...]")] = field(default_factory=list)
    """Run folders, or folders of runs (all below them are read)."""
    baseline: list[str] = field(default_factory=list)
    """Baseline runs for Delta_MTL, or the name of a method in the table. Default: the method of the first RUN
    or, if that is a folder of several, the first method without diffusion; with --paper, the STL runs among
    RUN, or else MTL."""
    paper: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the paper's tables."""
    benchmark: str | None = None
    """With --paper: only this benchmark ("pascal-context", "nyud-13", "nyud-40", "cityscapes-7",
    "cityscapes-raw", "cityscapes-19"), assumed for all runs. Default: inferred from their tasks, class counts
    and image names."""
    exact: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --paper: score saliency by its exact maxF instead of the paper's variant, which published results
    use."""
    out: str | None = None
    """Also write an HTML page."""
    csv: str | None = None
    """Also write all results as CSV."""
    json: str | None = None
    """Also write all results as JSON."""
    latex: str | None = None
    """With --paper: also write the tables as LaTeX (booktabs)."""
    pictures: int | None = None
    """Number of validation images on the page; default: 4, or none if there are more than two methods."""
    samples: int | None = None
    """Noise samples for the page's section on how certain the last method is, and whether it is uncertain
    where it is wrong; 0: no such section; default: 8."""


def main(arguments: list[str]) -> int:
    args = parse(Report, arguments, "report")
    check_json(args.json)
    if args.out is not None and Path(args.out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out must end in .html, got {args.out!r}")
    for option in ONLY_RUNS if args.paper else ONLY_PAPER:
        if getattr(args, option) != getattr(Report(), option):
            raise ConfigError(f"--{option} cannot be used {'with' if args.paper else 'without'} --paper")
    return _paper(args) if args.paper else _compare(args)


def _compare(args: Report) -> int:
    from dmtl.report.html.report import write_page
    from dmtl.report.runs.comparison import compare
    from dmtl.report.runs.write import write_csv, write_json

    if not args.runs:
        raise ConfigError("RUN must name at least one run, got none")
    comparison = compare(args.runs, args.baseline)
    samples = 8 if args.samples is None else args.samples
    written = write_files(
        comparison,
        (args.out, partial(write_page, pictures=args.pictures, samples=samples)),
        (args.csv, write_csv),
        (args.json, write_json),
    )
    for label, method in comparison.methods.items():
        baseline = " (baseline)" if comparison.deltas and method is comparison.baseline else ""
        say(f"{label}  {method.name}{baseline}")
    console.print(methods_table(comparison))
    baseline, *others = comparison.methods
    for begin in range(0, max(len(others), 1), COLUMNS):
        shown = [baseline, *others[begin : begin + COLUMNS]]
        methods = {label: comparison.methods[label] for label in shown}
        console.print(metric_table(methods, deltas=comparison.deltas))
    for remark in comparison.remarks:
        say(remark)
    if comparison.warning:
        console.print(Text(comparison.warning, style="bold red"), soft_wrap=True)
    for line in written:
        say(line)
    return 0


def methods_table(comparison: Comparison) -> Table:
    """Tabulate methods: label, Delta_MTL and its basis, seeds, steps, time."""
    from dmtl.report.runs.values import text_of

    names = ("", "Delta_MTL", "over", "seeds", "steps", "training")
    shown = table_of(names, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.columns[1].no_wrap = True
    shown.columns[2].justify = shown.columns[3].justify = "left"
    for row in comparison.summary():
        delta = comparison.deltas.get(row["label"])
        text = "" if delta is None else f"{text_of(delta.value, 2, sign=True)} %"
        shown.add_row(row["label"], text, row["basis"], row["seeds"], row["steps"], row["time"])
    return shown


def _paper(args: Report) -> int:
    from dmtl.report.paper.build import published_tables, tables
    from dmtl.report.paper.write import write_csv, write_json, write_latex, write_page

    if args.baseline and not args.runs:
        raise ConfigError("--baseline needs RUN, got none")
    if args.runs:
        found = tables(args.runs, args.baseline, args.benchmark, args.exact)
    else:
        found = published_tables(args.benchmark)
        if not found:
            raise ConfigError(f"--benchmark {args.benchmark} has no published results, expected RUN")
    outputs = (args.out, write_page), (args.csv, write_csv), (args.json, write_json)
    written = write_files(found, *outputs, (args.latex, write_latex))
    for table in found:
        _print_paper(table)
    for line in written:
        say(line)
    return 0


def _print_paper(table: PaperTable) -> None:
    """Print a table, its sources and the remarks on it."""
    console.print(Text(table.heading, style="bold"))
    # On a narrow terminal the lines break; fitting the table to it would drop columns.
    Console(file=console.file, width=max(console.width, WIDTH)).print(paper_table(table))
    for number, source in enumerate(table.sources, start=1):
        _print_note(f"[{number}]", source)
    for remark in table.remarks:
        _print_note(*(("*", remark[2:]) if remark.startswith("* ") else ("-", remark)))
    console.print()


def paper_table(table: PaperTable) -> Table:
    """Lay out a table; methods are named once, measured rows are below their published ones."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.add_column("method", min_width=10)
    if table.measured:
        shown.add_column("seeds", justify="right")
    shown.add_column("from", no_wrap=True)
    for column in table.columns:
        head = f"{column.task}\n{column.label} {'↑' if column.higher_is_better else '↓'}"
        shown.add_column(Text(head), justify="right", no_wrap=True)
    shown.add_column("Δ MTL\n% ↑", justify="right", no_wrap=True)
    for row in table.rows:
        about = [Text(row.label), Text(table.origin(row))]
        if table.measured:
            about.insert(1, Text("" if row.published else str(len(row.seeds))))
        cells = [_cell(cell, below=len(table.columns) > NARROW) for cell in table.cells(row)]
        shown.add_row(*about, *cells, style="dim" if row.published and table.measured else "")
    return shown


def _cell(cell: Cell, below: bool) -> Text:
    text = Text(cell.mean or "-", style="bold" if cell.best else "")
    if cell.spread:
        text.append("\n±" if below else "±", "not bold dim").append(cell.spread, "not bold dim")
    return text


def _print_note(label: str, text: str) -> None:
    """Print a remark, wrapped next to its label."""
    indent = " " * (len(label) + 1)
    say(textwrap.fill(f"{label} {text}", console.width, subsequent_indent=indent, break_on_hyphens=False))
