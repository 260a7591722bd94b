"""The page of `python -m benchmarks`, and the tables also printed on the terminal.

Both are built from the command's rows, whose "part" is "contenders" (`race`), "memory" or "roofline".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from dmtl.report.html.charts import COLOURS
from dmtl.report.html.template import page
from dmtl.runtime.files import write_text
from dmtl.text import duration, number

from .runtimes import FROM_EXPORT

Rows = Sequence[Mapping]
WIDTH, LINE, NAME = 720, 26, 190  # of the bars' picture, in its units
SIDE, LEFT, BOTTOM = (560, 300), 62, 40  # of the roofline's
AGAINST = ("published", "expert", *FROM_EXPORT)  # columns of ratios
_INNER = {"dmtl::conv3x3": "- conv3x3", "library convolutions": "- the library's"}


@dataclass(frozen=True)
class Table:
    """A table of text, names in the first column; `strong` has the indices of summary rows."""

    title: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    note: str = ""
    strong: frozenset[int] = frozenset()


def tables(rows: Rows) -> list[Table]:
    """Return a table for every part in the rows, in reading order."""
    found = [contenders_table(group) for group in _groups(rows, "contenders")]
    found += [memory_table(group) for group in _groups(rows, "memory")]
    found += [roofline_table(group) for group in _groups(rows, "roofline")]
    return found


def _groups(rows: Rows, part: str) -> Iterator[list[Mapping]]:
    """Yield the rows of one part by case, those of the roofline also by precision."""
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row["part"] == part:
            precision = row["precision"] if part == "roofline" else None
            groups.setdefault((described(row), precision), []).append(row)
    yield from groups.values()


def described(row: Mapping) -> str:
    """Describe case, batch and size, "published, 4 x 512 x 512"."""
    return f"{row['case']}, " + " x ".join(str(n) for n in (row["batch"], *row["size"]))


def contenders_table(rows: Rows) -> Table:
    first = rows[0]
    title = f"{described(first)}, {len(first['tasks'])} tasks, S = {first['steps']}"
    against = [name for name in AGAINST if any(f"times_{name}" in row for row in rows)]
    header = ["contender", "precision", "time", "images/s", *(f"x {name}" for name in against)]
    header += ["differs", "class pixels"]
    cells, notes = [], []
    for row in rows:
        cell = [row["contender"], row["precision"]]
        if "median_ms" in row:
            cell += [_ms(row["median_ms"]), number(row["images_per_s"])]
            cell += [f"{row[f'times_{name}']:.2f}" for name in against]
        else:
            cell += ["-"] * (2 + len(against))
        cell.append(f"{row['difference']:.1e}" if "difference" in row else "-")
        cells.append([*cell, f"{row['class_pixels']:.2%}" if "class_pixels" in row else "-"])
        if about := _reason(row) or row.get("how"):
            notes.append(f"{row['contender']} {row['precision']}: {about}.")
    notes.append("Medians over rounds in which all take turns; x: times faster than that baseline's best.")
    notes.append(
        "Differs: from the fp32 model, the largest of all tasks (share of pixels with another class, "
        "relative L2 of other maps); class pixels: that share."
    )
    return Table(title, header, cells, " ".join(notes))


def memory_table(rows: Rows) -> Table:
    cells = [[row["contender"], row["precision"], _mib(row.get("peak_mib")), _reason(row)] for row in rows]
    note = "Each in a separate process, including parameters and libraries; after a warm-up."
    return Table(f"Peak memory, {described(rows[0])}", ["contender", "precision", "peak", ""], cells, note)


def _reason(row: Mapping) -> str:
    """Return why a row has no result, or nothing."""
    return f"skipped, {row['skipped']}" if "skipped" in row else row.get("error", "")


def roofline_table(rows: Rows) -> Table:
    header = ["stage", "operator", "GFLOP", "floor", "direct", "time", "reached", "share"]
    cells = []
    for row in rows:
        stage = row["stage"] if row["operator"] == "all" else ""
        taken = [_ms(row["ms"]), "", f"{row['share']:.0%}"]
        if row.get("of_which"):
            cells.append([stage, _INNER[row["operator"]], "", "", "", *taken])
            continue
        floors = [_ms(row[key]) if row[key] else "-" for key in ("floor_ms", "direct_floor_ms")]
        if row["fraction"] is not None and row["floor_ms"]:
            taken[1] = f"{row['fraction']:.0%}"
        cells.append([stage, row["operator"], f"{row['flops'] / 1e9:,.3g}", *floors, *taken])
    whole = rows[-1]
    published, times = whole["published_floor_ms"], whole["ms"] / whole["published_floor_ms"]
    note = (
        f"Floor: the longer of operations at {whole['peak_flops'] / 1e9:,.0f} GFLOP/s (the library's best "
        f"dense product in {whole['maps']} here) and bytes at {whole['copy_bytes'] / 1e9:.3g} GB/s (a copy), "
        "layer by layer, by the algorithm used; direct: the same without Winograd's, which needs a quarter "
        "of the products; reached: floor / time. The published execution's "
        f"{whole['published_flops'] / 1e9:,.4g} GFLOP alone take {_ms(published)}; "
        f"this is {times:.2f} times that."
    )
    strong = frozenset(i for i, row in enumerate(rows) if row["operator"] == "all")
    return Table(f"Roofline, {described(whole)}, {whole['precision']}", header, cells, note, strong)


def _ms(time: float) -> str:
    return duration(time / 1e3)


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MiB"


def bars_svg(rows: Rows) -> Markup | None:
    """Draw times of the contenders as bars, labelled with their speed relative to published."""
    timed = [row for row in rows if "median_ms" in row]
    if not timed:
        return None
    longest, room = max(row["median_ms"] for row in timed), WIDTH - NAME - 170
    parts = []
    names = list(dict.fromkeys(row["contender"] for row in timed))
    for i, row in enumerate(timed):
        y, length = i * LINE, max(2.0, room * row["median_ms"] / longest)
        colour = f"s{names.index(row['contender']) % COLOURS}"
        title = escape(f"{row['contender']} {row['precision']}")
        figure = _ms(row["median_ms"])
        if "times_published" in row:
            figure += f", {row['times_published']:.2f}x published"
        parts.append(f'<text x="{NAME - 8}" y="{y + 17}" text-anchor="end">{title}</text>')
        box = f'x="{NAME}" y="{y + 5}" width="{length:.1f}" height="{LINE - 10}"'
        parts.append(f'<rect class="fill {colour}" {box}/>')
        parts.append(f'<text x="{NAME + length + 7:.1f}" y="{y + 17}">{figure}</text>')
    label = escape(f"Bars: time of each contender for {described(timed[0])}")
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {LINE * len(timed)}" role="img" aria-label="{label}">'
    return Markup(head + "".join(parts) + "</svg>")


def roofline_svg(rows: Rows) -> Markup | None:
    """Draw operations per second over operations per byte, both logarithmic, below the machine's roof."""
    points = [row for row in rows if row.get("flops") and row["ms"] > 0]
    points = [row for row in points if row["operator"] != "all" or row["stage"] == "all"]
    if not points:
        return None
    peak, copy = rows[-1]["peak_flops"], rows[-1]["copy_bytes"]
    places = [(row["flops"] / row["bytes"], 1e3 * row["flops"] / row["ms"]) for row in points]
    ridge = peak / copy
    x0, x1 = (
        f(math.log10(x) for x in (ridge, *(x for x, _ in places))) + d for f, d in ((min, -0.3), (max, 0.3))
    )
    y0, y1 = (
        f(math.log10(y) for y in (peak, *(y for _, y in places))) + d for f, d in ((min, -0.3), (max, 0.3))
    )
    width, height = SIDE

    def px(x: float) -> float:
        return LEFT + (math.log10(x) - x0) / (x1 - x0) * (width - LEFT - 10)

    def py(y: float) -> float:
        return 10 + (y1 - math.log10(y)) / (y1 - y0) * (height - BOTTOM - 10)

    parts = list(_decades(x0, x1, y0, y1, px, py))
    low = max(10**x0, 10**y0 / copy)
    roof = [(low, low * copy), (ridge, peak), (10**x1, peak)]
    path = "".join(f"{'L' if i else 'M'}{px(x):.1f} {py(y):.1f}" for i, (x, y) in enumerate(roof))
    parts.append(f'<path class="line s0" d="{path}"/>')
    for i, (row, (x, y)) in enumerate(zip(points, places, strict=True)):
        one = row["operator"] in ("all", "everything else")
        name = escape(row["stage"] if one else f"{row['stage']} {row['operator']}")
        about = escape(f"{row['stage']} {row['operator']}: {y / 1e9:,.0f} GFLOP/s at {x:.3g} FLOP/B")
        dot = (
            f'<circle class="dot s{1 + (row["operator"] != "all")}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="4"/>'
        )
        place = f'x="{px(x) + (7 if i % 2 else -7):.1f}" y="{py(y) + 4:.1f}"'
        anchor = "start" if i % 2 else "end"
        parts.append(f'{dot}<text {place} text-anchor="{anchor}">{name}<title>{about}</title></text>')
    label = escape(f"Roofline, {rows[-1]['precision']}: operations per second over operations per byte")
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return Markup(head + "".join(parts) + "</svg>")


def _decades(x0: float, x1: float, y0: float, y1: float, px, py) -> Iterator[str]:
    """Draw the grid and labels of both logarithmic axes."""
    width, height = SIDE
    for e in range(math.ceil(y0), math.floor(y1) + 1):
        y = py(10.0**e)
        yield f'<line class="grid" x1="{LEFT}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(10.0 ** (e - 9))}</text>'
    for e in range(math.ceil(x0), math.floor(x1) + 1):
        x = px(10.0**e)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="{height - BOTTOM}"/>'
        yield f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{number(10.0**e)}</text>'
    yield f'<text x="{(LEFT + width) / 2}" y="{height - 6}" text-anchor="middle">operations per byte</text>'
    turned = f'transform="translate(11 {height / 2}) rotate(-90)"'
    yield f'<text {turned} text-anchor="middle">GFLOP/s</text>'


def write_page(path: str | os.PathLike, rows: Rows, facts: Mapping) -> Path:
    """Write the page, one self-contained HTML file; OSError if it cannot be written."""
    bars = [(described(group[0]), bars_svg(group)) for group in _groups(rows, "contenders")]
    roofs = [
        (f"{described(group[0])}, {group[0]['precision']}", roofline_svg(group))
        for group in _groups(rows, "roofline")
    ]
    text = page(
        "page.html.j2",
        folder=Path(__file__).parent,
        facts=[(label, str(value)) for label, value in facts.items() if value is not None],
        bars=[(title, svg) for title, svg in bars if svg],
        roofs=[(title, svg) for title, svg in roofs if svg],
        tables=tables(rows),
    )
    write_text(path, text)
    return Path(path)
