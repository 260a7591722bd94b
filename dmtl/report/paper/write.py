"""Tables of the paper as text cells, as a page, as LaTeX, and as CSV and JSON for machines."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dmtl.evaluation.baseline import EVAL
from dmtl.report.html.sections import tone_of
from dmtl.report.html.template import page
from dmtl.report.paper.table import PaperTable, Row
from dmtl.report.runs.run import TRAINING
from dmtl.report.runs.values import Value, mean_of, numbers_of, spread_of, texts_of
from dmtl.runtime.files import write_text
from dmtl.text import MINUS, plural

COLUMNS = ("benchmark", "setting", "method", "published", "certain", "from", "task", "metric", "better")
NUMBERS = ("mean", "spread", "seeds")
LOST = "n.r."  # the results of a published row that was not recovered
DAGGER = "\N{DAGGER}"
_TEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\~{}", "^": r"\^{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {DAGGER: r"\textdagger{}", "±": r"$\pm$", "×": r"$\times$", MINUS: "$-$", "Δ": r"$\Delta$"}


@dataclass(frozen=True)
class Cell:
    """A result and its spread ("" for one seed) as text; both "" if there is none."""

    mean: str = ""
    spread: str = ""
    best: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Line:
    """A row as text.

    Attributes:
        row: what it is of.
        name: with a dagger if it is not verified.
        origin: where its results are from, short: "[1]" is the first of the table's sources, "eval" and
            "train" are eval.json and metrics.json.
        cells: one for each column.
        delta: Delta_MTL, with a star if it is not over all tasks.
    """

    row: Row
    name: str
    origin: str
    cells: list[Cell]
    delta: Cell
    reference: bool


def lines(table: PaperTable) -> Iterator[Line]:
    """Yield the rows of a table as text, published results as printed."""
    short = {EVAL: "eval", TRAINING: "train"}
    for row in table.rows:
        origin = (
            f"[{table.sources.index(row.printed.reference) + 1}]"
            if row.published
            else "+".join(short[f] for f in row.files)
        )
        cells = []
        for column in table.columns:
            if column.task not in row.values:
                cells.append(Cell())
                continue
            value = row.values[column.task]
            printed = len(str(value).partition(".")[2]) if row.published else 0
            texts = texts_of(value, max(column.digits, printed))
            cells.append(Cell(*texts, best=row in table.best(column, row.published)))
        name = row.name + (DAGGER if row.printed and row.printed.doubt else "")
        yield Line(row, name, origin, cells, _delta(table, row), row is table.reference)


def _delta(table: PaperTable, row: Row) -> Cell:
    if row.delta is None:
        return Cell()
    mean, spread = texts_of(row.delta.value, 2, sign=True)
    star = "*" if len(row.delta.tasks) < len(table.columns) else ""
    return Cell(mean + star, spread, tone=tone_of(row.delta.value) if row.certain else "")


def write_page(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write one HTML file that needs nothing else; OSError if it cannot be written."""
    measured = sum(len(row.runs) for table in tables for row in table.measured)
    subtitle = "The published results, as far as they were recovered"
    if measured:
        subtitle = f"{plural(measured, 'run')} next to the published results"
    sections = [{"table": table, "lines": list(lines(table))} for table in tables]
    write_text(path, page("paper.html.j2", subtitle=subtitle, sections=sections, lost=LOST))


def write_csv(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write one row for each result, Delta_MTL among them (in percent, no task). `spread` is a sample
    standard deviation, empty for one seed; `certain` is 0 for published rows that are not verified or of
    another network."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *NUMBERS])
    for table in tables:
        name = table.benchmark.name if table.benchmark else table.title
        for row in table.rows:
            source = row.printed.source if row.printed else "+".join(row.files)
            about = (name, table.setting, row.name, int(row.published), int(row.certain), source)
            for column in (c for c in table.columns if c.task in row.values):
                better = "higher" if column.higher_is_better else "lower"
                seeds = sum(column.task in results for results in row.by_seed.values())
                numbers = _numbers(row.values[column.task], seeds)
                writer.writerow([*about, column.task, column.metric, better, *numbers])
            if row.delta:
                numbers = _numbers(row.delta.value, len(row.delta.seeds))
                writer.writerow([*about, "", "Delta_MTL", "higher", *numbers])
    write_text(path, stream.getvalue())


def _numbers(value: Value, seeds: int) -> tuple[float, float | None, int | str]:
    return mean_of(value), spread_of(value), seeds or ""


def write_json(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write all tables: columns, rows with results, spreads, runs and sources, and the remarks."""
    write_text(path, json.dumps({"tables": [_plain(table) for table in tables]}, indent=2) + "\n")


def _plain(table: PaperTable) -> dict:
    rows = []
    for row in table.rows:
        results = {task: numbers_of(value) for task, value in row.values.items()}
        about: dict = {"method": row.method, "name": row.name, "published": row.published, "figures": results}
        if row.printed:
            about |= {key: getattr(row.printed, key) for key in ("source", "doubt", "network")}
            about["printed_delta"] = row.printed.delta
        else:
            about["by_seed"] = row.by_seed
            about["runs"] = [
                {"path": str(r.path), "seed": r.seed, "file": r.file, "protocol": dict(r.protocol)}
                for r in row.runs
            ]
        if row.delta:
            delta = row.delta
            about["delta"] = numbers_of(delta.value) | {"each": list(delta.each), "seeds": list(delta.seeds)}
            about["delta"] |= {"tasks": list(delta.tasks), "paired": delta.paired}
        rows.append(about)
    return {
        "benchmark": table.benchmark.name if table.benchmark else None,
        "title": table.title,
        "setting": table.setting,
        "columns": [
            {"task": c.task, "metric": c.metric, "higher_is_better": c.higher_is_better}
            for c in table.columns
        ],
        "reference": table.reference.name if table.reference else None,
        "rows": rows,
        "remarks": table.remarks,
    }


def write_latex(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write a `table` for each, for a document that uses the package booktabs. Sources and what a star means
    are below the results, all remarks are comments."""
    write_text(path, "% \\usepackage{booktabs}\n\n" + "\n".join(_latex(table) for table in tables))


def _latex(table: PaperTable) -> str:
    arrows = [r"$\uparrow$" if column.higher_is_better else r"$\downarrow$" for column in table.columns]
    metrics = [f"{_tex(column.label)} {arrow}" for column, arrow in zip(table.columns, arrows, strict=True)]
    text = [
        *(f"% {remark}" for remark in table.remarks),
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(table.heading)}}}",
        rf"\begin{{tabular}}{{@{{}}ll{'c' * len(table.columns)}c@{{}}}}",
        r"\toprule",
        " & ".join(["", "", *(_tex(column.task) for column in table.columns), r"$\Delta_{\mathrm{MTL}}$"])
        + r" \\",
        " & ".join(["Method", "Source", *metrics, r"\% $\uparrow$"]) + r" \\",
        r"\midrule",
    ]
    for line in lines(table):
        row = line.row
        about = line.origin if row.published else f"ours, {plural(len(row.by_seed), 'seed')}"
        if row.lost:
            cells = [LOST] * (len(table.columns) + 1)
        else:
            cells = [*map(_tex_cell, line.cells), "ref." if line.reference else _tex_cell(line.delta)]
        text.append(" & ".join([_tex(line.name), about, *cells]) + r" \\")
    below = [f"[{i}] {source}" for i, source in enumerate(table.sources, start=1)]
    below += [remark for remark in table.remarks if remark.startswith("* ")]
    text += [r"\bottomrule", r"\end{tabular}"]
    if below:
        text += ["", r"\smallskip\raggedright\scriptsize", *(rf"{_tex(each)}\par" for each in below)]
    return "\n".join([*text, r"\end{table}", ""])


def _tex_cell(cell: Cell) -> str:
    if not cell.mean:
        return "--"
    mean, spread = (text.replace(MINUS, "-") for text in (cell.mean, cell.spread))
    mean = rf"\mathbf{{{mean}}}" if cell.best else mean.replace("*", "^{*}")
    return f"${mean}$" if not spread else rf"${mean}_{{\pm{spread}}}$"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
