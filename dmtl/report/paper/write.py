"""Write tables of the paper as a page, as LaTeX, and as CSV and JSON for machines."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dmtl.report.html.template import page
from dmtl.report.paper.table import DAGGER, LOST, REFERENCE, Cell, PaperTable, Row
from dmtl.report.runs.values import mean_of, numbers_of, spread_of
from dmtl.report.runs.write import write_table
from dmtl.runtime import files
from dmtl.text import MINUS, plural

COLUMNS = (
    *("benchmark", "setting", "method", "published", "certain", "from", "task", "metric", "better"),
    *("mean", "spread", "seeds"),
)
_TEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\~{}", "^": r"\^{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {DAGGER: r"\textdagger{}", "±": r"$\pm$", "×": r"$\times$", MINUS: "$-$", "Δ": r"$\Delta$"}


def write_page(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write tables as one self-contained HTML file; raise OSError if it cannot be written."""
    measured = sum(len(row.runs) for table in tables for row in table.measured)
    subtitle = "The published results that could be recovered"
    if measured:
        subtitle = f"{plural(measured, 'run')} next to the published results"
    files.write_text(path, page("paper.html.j2", subtitle=subtitle, tables=tables, lost=LOST, ref=REFERENCE))


def write_csv(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write tables as CSV: one line for each result, including Delta_MTL (in percent, without a task).

    `spread` is the sample standard deviation, empty for one seed. `certain` is 0 for published rows that are
    not verified or are of another network.
    """
    lines: list[tuple] = []
    for table in tables:
        name = table.benchmark.name if table.benchmark else table.title
        for row in table.rows:
            source = row.printed.source if row.printed else "+".join(row.files)
            about = (name, table.setting, row.name, int(row.published), int(row.certain), source)
            found = []
            for column in (c for c in table.columns if c.task in row.values):
                better = "higher" if column.higher_is_better else "lower"
                seeds = len(row.measured.values(column.task, column.metric)) if row.measured else 0
                found.append((column.task, column.metric, better, row.values[column.task], seeds))
            if row.delta:
                found.append(("", "Delta_MTL", "higher", row.delta.value, len(row.delta.seeds)))
            for *what, value, seeds in found:
                lines.append((*about, *what, mean_of(value), spread_of(value), seeds or ""))
    write_table(path, COLUMNS, lines)


def write_json(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write tables as JSON: columns, rows with results, spreads, runs and sources, and the remarks."""
    found = [
        {
            "benchmark": table.benchmark.name if table.benchmark else None,
            "title": table.title,
            "setting": table.setting,
            "columns": [
                {key: getattr(column, key) for key in ("task", "metric", "higher_is_better")}
                for column in table.columns
            ],
            "reference": table.reference.name if table.reference else None,
            "rows": [_plain(table, row) for row in table.rows],
            "remarks": table.remarks,
        }
        for table in tables
    ]
    files.write_json(path, {"tables": found})


def _plain(table: PaperTable, row: Row) -> dict:
    results = {task: numbers_of(value) for task, value in row.values.items()}
    about: dict = {"method": row.method, "name": row.name, "published": row.published, "results": results}
    if row.printed:
        about |= {key: getattr(row.printed, key) for key in ("source", "doubt", "network")}
        about["printed_delta"] = row.printed.delta
    elif row.measured:
        about["by_seed"] = {
            seed: {c.task: own[c.task][c.metric] for c in table.columns if c.metric in own.get(c.task, {})}
            for seed, own in row.measured.by_seed.items()
        }
        about["runs"] = [
            {"path": str(r.path), "seed": r.seed, "file": r.file, "protocol": dict(r.protocol)}
            for r in row.runs
        ]
    if row.delta:
        keys = ("each", "seeds", "tasks", "paired")
        about["delta"] = numbers_of(row.delta.value) | {key: getattr(row.delta, key) for key in keys}
    return about


def write_latex(path: str | os.PathLike, tables: Sequence[PaperTable]) -> None:
    """Write tables as LaTeX: a `table` environment for each, with the package booktabs.

    Sources and the meaning of a star are below the results. All remarks are comments in the file.
    """
    files.write_text(path, "% \\usepackage{booktabs}\n\n" + "\n".join(_latex(table) for table in tables))


def _latex(table: PaperTable) -> str:
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    rows = [
        ["", "", *(_tex(column.task) for column in table.columns), r"$\Delta_{\mathrm{MTL}}$"],
        ["Method", "Source"],
    ]
    rows[1] += [f"{_tex(column.label)} {arrows[column.higher_is_better]}" for column in table.columns]
    rows[1].append(r"\% $\uparrow$")
    for row in table.rows:
        about = table.origin(row) if row.published else f"ours, {plural(len(row.seeds), 'seed')}"
        rows.append([_tex(row.label), about, *map(_tex_cell, table.cells(row))])
    below = [f"[{i}] {source}" for i, source in enumerate(table.sources, start=1)]
    below += [remark for remark in table.remarks if remark.startswith("* ")]
    lines = [" & ".join(row) + r" \\" for row in rows]
    text = [
        *(f"% {remark}" for remark in table.remarks),
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(table.heading)}}}",
        rf"\begin{{tabular}}{{@{{}}ll{'c' * len(table.columns)}c@{{}}}}",
        *(r"\toprule", *lines[:2], r"\midrule", *lines[2:], r"\bottomrule"),
        r"\end{tabular}",
    ]
    if below:
        text += ["", r"\smallskip\raggedright\scriptsize", *(rf"{_tex(each)}\par" for each in below)]
    return "\n".join([*text, r"\end{table}", ""])


def _tex_cell(cell: Cell) -> str:
    if cell.mean in ("", LOST, REFERENCE):
        return cell.mean or "--"
    mean, spread = (text.replace(MINUS, "-") for text in (cell.mean, cell.spread))
    mean = rf"\mathbf{{{mean}}}" if cell.best else mean.replace("*", "^{*}")
    return f"${mean}$" if not spread else rf"${mean}_{{\pm{spread}}}$"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
