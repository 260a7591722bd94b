"""Tables of results as a page, as LaTeX, and as CSV and JSON for machines."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence

from dmtl.report.data import Value, mean_of, spread_of
from dmtl.report.html import MINUS, figure, gain_tone
from dmtl.report.page import page
from dmtl.report.published_figures import Column
from dmtl.report.table import ResultTable, Row
from dmtl.report.table_runs import EVAL, TRAINING
from dmtl.runtime.files import write_text

COLUMNS = ("benchmark", "setting", "method", "published", "certain", "from", "task", "metric", "better")
NUMBERS = ("mean", "spread", "seeds")
LOST = "n.r."  # the figures of a published row that was not recovered
DAGGER = "\N{DAGGER}"
_TEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\~{}", "^": r"\^{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {DAGGER: r"\textdagger{}", "±": r"$\pm$", "×": r"$\times$", MINUS: "$-$", "Δ": r"$\Delta$"}


def lost(row: Row) -> bool:
    """Whether a published row was not recovered."""
    return row.published and not row.values


def mark(row: Row) -> str:
    """A dagger for a row that is not verified."""
    return DAGGER if row.printed and row.printed.doubt else ""


def origin(table: ResultTable, row: Row) -> str:
    """Where a row's figures are from, short: "[1]" is the first of the table's sources, "eval" and "train"
    are eval.json and metrics.json."""
    if row.published:
        return f"[{table.source_of(row) + 1}]"
    short = {EVAL: "eval", TRAINING: "train"}
    return "+".join(short[file] for file in row.files)


def parts(row: Row, column: Column) -> tuple[str, str] | None:
    """A figure and its spread ("" of one seed) as text, a published one as printed; None without one."""
    if column.task not in row.values:
        return None
    value = row.values[column.task]
    printed = len(str(value).partition(".")[2]) if row.published else 0
    return _texts(value, max(column.digits, printed))


def delta_parts(table: ResultTable, row: Row) -> tuple[str, str] | None:
    """Delta_MTL and its spread as text, with a star where it is not over all tasks."""
    if row.delta is None:
        return None
    mean, spread = _texts(row.delta.value, 2, sign=True)
    return mean + ("*" if len(row.delta.tasks) < len(table.columns) else ""), spread


def write_page(path: str | os.PathLike, tables: Sequence[ResultTable]) -> None:
    """One HTML file that needs nothing else; OSError if it cannot be written."""
    measured = sum(len(row.runs) for table in tables for row in table.measured)
    runs = f"{measured} run{'' if measured == 1 else 's'} beside the published figures"
    subtitle = runs if measured else "The published figures, as far as they were recovered"
    write_text(path, page("table.html.j2", subtitle=subtitle, tables=[_section(table) for table in tables]))


def write_csv(path: str | os.PathLike, tables: Sequence[ResultTable]) -> None:
    """One row a figure, Delta_MTL among them (in percent, no task). `spread` is a sample standard deviation,
    empty for one seed; `certain` is 0 for published rows that are not verified or of another network."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *NUMBERS])
    for table in tables:
        name = table.benchmark.name if table.benchmark else table.title
        for row in table.rows:
            source = row.printed.source if row.printed else "+".join(row.files)
            about = (name, table.setting, row.name, int(row.published), int(row.certain), source)
            for column in (c for c in table.columns if c.task in row.values):
                value = row.values[column.task]
                better = "higher" if column.higher_is_better else "lower"
                seeds = sum(column.task in figures for figures in row.by_seed.values()) or ""
                numbers = (mean_of(value), spread_of(value), seeds)
                writer.writerow([*about, column.task, column.metric, better, *numbers])
            if row.delta:
                value = row.delta.value
                numbers = (mean_of(value), spread_of(value), len(row.delta.seeds) or "")
                writer.writerow([*about, "", "Delta_MTL", "higher", *numbers])
    write_text(path, stream.getvalue())


def write_json(path: str | os.PathLike, tables: Sequence[ResultTable]) -> None:
    """All tables: columns, rows with figures, spreads, runs and sources, and the remarks."""
    write_text(path, json.dumps({"tables": [_plain(table) for table in tables]}, indent=2) + "\n")


def write_latex(path: str | os.PathLike, tables: Sequence[ResultTable]) -> None:
    """A `table` for each, for a document that uses the package booktabs. Sources and what a star means stand
    below the figures, all remarks are comments."""
    write_text(path, "% \\usepackage{booktabs}\n\n" + "\n".join(_latex(table) for table in tables))


def _texts(value: Value, digits: int, sign: bool = False) -> tuple[str, str]:
    spread = spread_of(value)
    return figure(mean_of(value), digits, sign), "" if spread is None else figure(spread, digits)


def _section(table: ResultTable) -> dict:
    """What the template needs of a table."""
    rows = []
    for row in table.rows:
        cells = [
            {"text": parts(row, column), "best": row in table.best(column, row.published)}
            for column in table.columns
        ]
        delta, tone = delta_parts(table, row), ""
        if delta and row.certain:
            tone = gain_tone(mean_of(row.delta.value), spread_of(row.delta.value))
        rows.append(
            {
                "name": row.name,
                "mark": mark(row),
                "published": row.published,
                "lost": LOST if lost(row) else "",
                "reference": row is table.reference,
                "origin": origin(table, row),
                "files": " and ".join(row.files),
                "seeds": ", ".join(map(str, row.by_seed)),
                "cells": cells,
                "delta": delta,
                "tone": tone,
            }
        )
    return {
        "heading": table.heading,
        "columns": table.columns,
        "rows": rows,
        "measured": bool(table.measured),
        "sources": table.sources,
        "remarks": table.remarks,
    }


def _plain(table: ResultTable) -> dict:
    rows = []
    for row in table.rows:
        figures = {task: _numbers(value) for task, value in row.values.items()}
        about: dict = {"method": row.method, "name": row.name, "published": row.published, "figures": figures}
        if row.printed:
            about |= {
                "source": row.printed.source,
                "doubt": row.printed.doubt,
                "network": row.printed.network,
            }
            about["printed_delta"] = row.printed.delta
        else:
            about["by_seed"] = row.by_seed
            about["runs"] = [
                {"path": str(s.run.path), "seed": s.seed, "file": s.file, "protocol": dict(s.protocol)}
                for s in row.runs
            ]
        if row.delta:
            delta = row.delta
            about["delta"] = _numbers(delta.value) | {"each": list(delta.each), "seeds": list(delta.seeds)}
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


def _numbers(value: Value) -> dict:
    """NaN is no JSON: None."""
    mean, spread = mean_of(value), spread_of(value)
    return {"mean": mean if math.isfinite(mean) else None, "spread": spread}


def _latex(table: ResultTable) -> str:
    arrows = [r"$\uparrow$" if column.higher_is_better else r"$\downarrow$" for column in table.columns]
    figures = [f"{_tex(column.label)} {arrow}" for column, arrow in zip(table.columns, arrows, strict=True)]
    lines = [
        *(f"% {remark}" for remark in table.remarks),
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(table.heading)}}}",
        rf"\begin{{tabular}}{{@{{}}ll{'c' * len(table.columns)}c@{{}}}}",
        r"\toprule",
        " & ".join(["", "", *(_tex(column.task) for column in table.columns), r"$\Delta_{\mathrm{MTL}}$"])
        + r" \\",
        " & ".join(["Method", "Source", *figures, r"\% $\uparrow$"]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        about = origin(table, row) if row.published else f"ours, {_count(len(row.by_seed))}"
        if lost(row):
            cells = [LOST] * (len(table.columns) + 1)
        else:
            cells = [_tex_figure(parts(row, c), row in table.best(c, row.published)) for c in table.columns]
            cells.append("ref." if row is table.reference else _tex_figure(delta_parts(table, row), False))
        lines.append(" & ".join([_tex(row.name + mark(row)), about, *cells]) + r" \\")
    below = [f"[{i}] {source}" for i, source in enumerate(table.sources, start=1)]
    below += [remark for remark in table.remarks if remark.startswith("* ")]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if below:
        lines += ["", r"\smallskip\raggedright\scriptsize", *(rf"{_tex(text)}\par" for text in below)]
    return "\n".join([*lines, r"\end{table}", ""])


def _tex_figure(texts: tuple[str, str] | None, best: bool) -> str:
    if texts is None:
        return "--"
    mean, spread = (text.replace(MINUS, "-") for text in texts)
    mean = rf"\mathbf{{{mean}}}" if best else mean.replace("*", "^{*}")
    return f"${mean}$" if not spread else rf"${mean}_{{\pm{spread}}}$"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _count(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"
