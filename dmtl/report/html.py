"""Write a report as one HTML file that needs nothing else: no network, no script, no font, no second file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from dmtl.report.charts import COLOURS, chart_svg
from dmtl.report.data import (
    Cell,
    Labels,
    MetricRow,
    ReportData,
    SamplePictures,
    Value,
    mean_of,
    relative_gain,
    spread_of,
)
from dmtl.report.page import page
from dmtl.report.pictures import MAX_COLUMNS, label_strips, picture
from dmtl.runtime.files import write_text

MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"


def write_report(path: str | os.PathLike, data: ReportData) -> Path:
    """Write `data` to the HTML file `path` (folders are made).

    The file appears whole or not at all; OSError if it cannot be written.
    """
    path = Path(path)
    write_text(path, render(data))
    return path


def render(data: ReportData) -> str:
    """The page as text. Every string of `data` is escaped."""
    return page(
        "template.html.j2",
        **metric_sections(data),
        facts=[(str(label), str(value)) for label, value in data.facts],
        headlines=_headlines(data),
        gains=_gains(data),
        labels=label_section(data.label_matrix),
        uncertainty=_uncertainty(data),
        samples=sample_sections(data.samples),
        legends=[(task, list(colours)) for task, colours in data.legends.items() if colours],
    )


def metric_sections(data: ReportData) -> dict:
    """What the templates of the metric table and of the curves need."""
    return {
        "data": data,
        "methods": data.methods(),
        "compared": data.compared(),
        "totals": _totals(data),
        "minor": any(not row.primary for row in data.metrics),
        "table": _table(data),
        "charts": _charts(data),
    }


def figure(value: float | None, digits: int | None = None, sign: bool = False) -> str:
    """A number with a true minus sign;

    four significant digits unless `digits` after the point are asked for.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    digits = _digits(value) if digits is None else digits
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def _digits(value: float) -> int:
    """Digits after the point that show four significant ones, at most four."""
    return min(4, max(0, 3 - math.floor(math.log10(abs(value))))) if value and math.isfinite(value) else 1


def _headlines(data: ReportData) -> list[dict]:
    """One headline for each method that has a Delta:

    the figure, and one sentence that claims no more than the spread allows.
    """
    reference = (data.methods() or ["the reference"])[0]
    result = []
    for method, value in data.delta.items():
        if method == reference:
            continue
        mean, spread = mean_of(value), spread_of(value)
        result.append(
            {
                "method": method,
                "reference": reference,
                "mean": figure(mean, 2, sign=True),
                "spread": None if spread is None else figure(spread, 2),
                "tone": gain_tone(mean, spread),
                "verdict": _verdict(mean, spread, method, reference, data.runs),
            }
        )
    return result


def gain_tone(mean: float, spread: float | None) -> str:
    if not math.isfinite(mean) or abs(mean) <= (spread or 0.0) or round(mean, 2) == 0:
        return "even"
    return "good" if mean > 0 else "bad"


def _verdict(mean: float, spread: float | None, method: str, reference: str, runs: int) -> str:
    if not math.isfinite(mean):
        return "No figure: at least one metric has no finite value."
    tone = gain_tone(mean, spread)
    if spread is None or runs < 2:
        word = {"good": "ahead of", "bad": "behind", "even": "level with"}[tone]
        result = f"In this run {method} is {word} {reference}."
        return f"{result} It is one run of each: how much the seed matters is not known."
    over = f"over {runs} runs of each"
    if tone == "even":
        return f"No clear difference: the mean {over} lies within one standard deviation of zero."
    word = "ahead of" if tone == "good" else "behind"
    return f"{method} is {word} {reference} by more than one standard deviation, {over}."


def _gains(data: ReportData) -> list[dict]:
    """Bars of the gain per task on the metrics that enter Delta, one group a method."""
    methods = data.methods()
    groups = []
    for method in data.compared():
        rows = [(row, relative_gain(row, method, methods[0])) for row in data.metrics if row.primary]
        rows = [(row, gain) for row, gain in rows if gain is not None]
        if not rows:
            continue
        reach = max(max(abs(g) for _, g in rows), 1.0)
        bars = [
            {
                "task": row.task,
                "metric": row.metric,
                "gain": figure(gain, 1, sign=True),
                "width": round(50 * abs(gain) / reach, 2),
                "tone": "good" if gain > 0 else "bad" if gain < 0 else "even",
            }
            for row, gain in rows
        ]
        groups.append({"method": method, "reference": methods[0], "bars": bars})
    return groups


def _table(data: ReportData) -> list[dict]:
    methods = data.methods()
    rows, previous = [], None
    for row in data.metrics:
        best = _best(row)
        cells = []
        for method in methods:
            value = row.values.get(method)
            cells.append(
                {
                    "mean": figure(None if value is None else mean_of(value)),
                    "spread": _spread(value),
                    "best": method in best,
                }
            )
        gains = []
        for method in data.compared():
            gain = relative_gain(row, method, methods[0])
            tone = "" if gain is None else "good" if gain > 0 else "bad" if gain < 0 else "even"
            gains.append({"text": figure(gain, 1, sign=True), "tone": tone})
        rows.append({"row": row, "first": row.task != previous, "cells": cells, "gains": gains})
        previous = row.task
    return rows


def _totals(data: ReportData) -> list[dict]:
    """Delta of every compared method, for the last row of the table."""
    totals = []
    for method in data.compared():
        value = data.delta.get(method)
        mean = math.nan if value is None else mean_of(value)
        spread = None if value is None else spread_of(value)
        totals.append(
            {
                "text": figure(mean, 2, sign=True),
                "tone": gain_tone(mean, spread) if math.isfinite(mean) else "",
            }
        )
    return totals


def _spread(value: Value | None) -> str:
    spread = None if value is None else spread_of(value)
    return "" if spread is None else figure(spread, _digits(mean_of(value)))


def _best(row: MetricRow) -> set[str]:
    """Methods that share the best mean;

    nobody is marked when there is nothing to compare or all are equal.
    """
    means = {m: mean_of(v) for m, v in row.values.items() if math.isfinite(mean_of(v))}
    if len(means) < 2 or len(set(means.values())) == 1:
        return set()
    top = (max if row.higher_is_better else min)(means.values())
    return {m for m, v in means.items() if v == top}


def label_section(labels: Labels | None) -> dict | None:
    """What `strips.html.j2` needs, and the counts around it."""
    if labels is None or not len(labels.ids):
        return None
    per_image = [sum(bool(x) for x in row) for row in labels.matrix]
    counts = {n: per_image.count(n) for n in sorted(set(per_image))}
    parts = [f"{count} with {n} label{'' if n == 1 else 's'}" for n, count in counts.items()]
    total = sum(per_image)
    return {
        "rows": label_strips(labels),
        "images": len(per_image),
        "shown": min(len(per_image), MAX_COLUMNS),
        "total": total,
        "share": 100 * total / max(len(per_image) * len(labels.tasks), 1),
        "split": ", ".join(parts),
    }


def _charts(data: ReportData) -> list[dict]:
    charts = []
    for chart in data.curves:
        svg = chart_svg(chart)
        if svg is not None:
            legend = [(name, f"s{i % COLOURS}") for i, name in enumerate(chart.series)]
            charts.append({"title": chart.title, "svg": svg, "legend": legend, "log": chart.log_y})
    return charts


def _uncertainty(data: ReportData) -> dict | None:
    """Rows with the AUROC as a figure and as a bar from 0.5, and one sentence that counts them."""
    found = data.uncertainty
    if found is None or not found.rows:
        return None
    rows = [
        {
            "row": row,
            "auroc": figure(row.auroc, 2),
            "width": round(100 * abs(row.auroc - 0.5), 2) if math.isfinite(row.auroc) else 0,
            "tone": "good" if row.auroc > 0.5 else "bad",
        }
        for row in found.rows
    ]
    above, clearly = (sum(row.auroc > least for row in found.rows) for least in (0.5, 0.7))
    tasks = f"{len(rows)} task{'' if len(rows) == 1 else 's'}"
    verdict = f"Uncertainty is higher where the prediction is wrong on {above} of {tasks}"
    verdict += f", clearly so (above 0.7) on {clearly}." if above else "."
    return {"found": found, "rows": rows, "verdict": verdict}


def sample_sections(samples: Sequence[SamplePictures]) -> list[dict]:
    """Pictures of images as the templates show them."""
    result = []
    for sample in samples:
        rows = [(row.task, [Cell(*cell) for cell in row.cells]) for row in sample.rows]
        captions = list(dict.fromkeys(cell.caption for _, cells in rows for cell in cells))
        table = []
        for task, cells in rows:
            by_caption = {
                c.caption: {
                    "picture": None if c.rgb is None else picture(c.rgb),
                    "note": c.note,
                    "scale": c.scale,
                }
                for c in cells
            }
            table.append({"task": task, "cells": [by_caption.get(caption) for caption in captions]})
        result.append(
            {
                "id": sample.id,
                "image": picture(sample.image),
                "captions": captions,
                "rows": table,
                "note": sample.note,
            }
        )
    return result
