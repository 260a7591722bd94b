"""A report as one HTML file that needs nothing else: no network, no script, no font, no second file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from dmtl.report.html.charts import COLOURS, chart_svg
from dmtl.report.html.content import Cell, Labels, MetricRow, ReportData, SamplePictures
from dmtl.report.html.images import MAX_COLUMNS, label_strips, picture
from dmtl.report.html.template import page
from dmtl.report.runs.values import Value, mean_of, spread_of, texts_of
from dmtl.runtime.files import write_text
from dmtl.text import fixed, plural

MOST_PANELS = 2  # methods with a headline; more are a table alone


def write_report(path: str | os.PathLike, data: ReportData) -> Path:
    """Write `data` to the HTML file `path` (folders are made).

    The file appears whole or not at all; OSError if it cannot be written.
    """
    path = Path(path)
    write_text(path, render(data))
    return path


def render(data: ReportData) -> str:
    """Return the page as text. Every string of `data` is escaped."""
    compared = data.compared()
    panels = compared if len(compared) <= MOST_PANELS else []
    return page(
        "report.html.j2",
        data=data,
        methods=data.methods(),
        compared=compared,
        totals=[_delta(data.delta.get(method, math.nan)) for method in compared],
        minor=any(not row.primary for row in data.metrics),
        table=_table(data),
        charts=_charts(data),
        facts=[(str(label), str(value)) for label, value in data.facts],
        summary=[{**row, **_summary_delta(data, row["label"])} for row in data.summary],
        headlines=[_headline(data, method) for method in panels],
        gains=[group for method in panels if (group := _gains(data, method))],
        labels=label_section(data.label_matrix),
        uncertainty=_uncertainty(data),
        samples=sample_sections(data.samples),
        legends=[(task, list(colours)) for task, colours in data.legends.items() if colours],
    )


def tone_of(value: Value) -> str:
    """Return how a Delta_MTL is coloured: "good", "bad", or "even" if it is within its spread of zero."""
    mean = mean_of(value)
    if not math.isfinite(mean) or abs(mean) <= (spread_of(value) or 0.0) or round(mean, 2) == 0:
        return "even"
    return "good" if mean > 0 else "bad"


def _delta(value: Value) -> dict[str, str]:
    mean, spread = texts_of(value, 2, sign=True)
    tone = tone_of(value) if math.isfinite(mean_of(value)) else ""
    return {"mean": mean, "spread": spread, "tone": tone}


def _summary_delta(data: ReportData, label: str) -> dict[str, str]:
    if label not in data.delta:
        return {"mean": "", "spread": "", "tone": ""}
    return _delta(data.delta[label])


def _headline(data: ReportData, method: str) -> dict:
    """Delta_MTL of a method, and one sentence that claims no more than the spread allows."""
    value, reference = data.delta[method], data.methods()[0]
    about = {"method": method, "reference": reference, **_delta(value), "tone": tone_of(value)}
    return about | {"verdict": _verdict(value, method, reference, data.runs)}


def _verdict(value: Value, method: str, reference: str, runs: int) -> str:
    if not math.isfinite(mean_of(value)):
        return "No figure: at least one metric has no finite value."
    tone = tone_of(value)
    word = {"good": "ahead of", "bad": "behind", "even": "level with"}[tone]
    if spread_of(value) is None or runs < 2:
        result = f"In this run {method} is {word} {reference}."
        return f"{result} It is one run of each: how much the seed matters is not known."
    over = f"over {runs} runs of each"
    if tone == "even":
        return f"No clear difference: the mean {over} lies within one standard deviation of zero."
    return f"{method} is {word} {reference} by more than one standard deviation, {over}."


def _gains(data: ReportData, method: str) -> dict | None:
    """Bars of the gain per task on the metrics that enter Delta_MTL."""
    reference = data.methods()[0]
    rows = [(row, _relative_gain(row, method, reference)) for row in data.metrics if row.primary]
    rows = [(row, gain) for row, gain in rows if gain is not None]
    if not rows:
        return None
    reach = max(1.0, *(abs(gain) for _, gain in rows))
    bars = [
        {"task": row.task, "metric": row.metric, "width": round(50 * abs(gain) / reach, 2), **_gain(gain)}
        for row, gain in rows
    ]
    return {"method": method, "reference": reference, "bars": bars}


def _gain(gain: float | None) -> dict[str, str]:
    tone = "" if gain is None else "good" if gain > 0 else "bad" if gain < 0 else "even"
    return {"text": fixed(gain, 1, sign=True), "tone": tone}


def _relative_gain(row: MetricRow, method: str, reference: str) -> float | None:
    """The improvement over `reference` in percent of it: positive is better in either direction."""
    if method not in row.values or reference not in row.values:
        return None
    ours, theirs = mean_of(row.values[method]), mean_of(row.values[reference])
    if not (math.isfinite(ours) and math.isfinite(theirs)) or theirs == 0:
        return None
    return (100.0 if row.higher_is_better else -100.0) * (ours - theirs) / theirs


def _table(data: ReportData) -> list[dict]:
    methods, rows, previous = data.methods(), [], None
    for row in data.metrics:
        best, cells = _best(row), []
        for method in methods:
            mean, spread = texts_of(row.values.get(method, math.nan))
            cells.append({"mean": mean, "spread": spread, "best": method in best})
        gains = [_gain(_relative_gain(row, method, methods[0])) for method in data.compared()]
        rows.append({"row": row, "first": row.task != previous, "cells": cells, "gains": gains})
        previous = row.task
    return rows


def _best(row: MetricRow) -> set[str]:
    """Methods that share the best mean; none if there is nothing to compare or all are equal."""
    means = {m: mean_of(v) for m, v in row.values.items() if math.isfinite(mean_of(v))}
    if len(set(means.values())) < 2:
        return set()
    top = (max if row.higher_is_better else min)(means.values())
    return {m for m, v in means.items() if v == top}


def label_section(labels: Labels | None) -> dict | None:
    """Return what `strips.html.j2` needs, and the counts around it."""
    if labels is None or not len(labels.ids):
        return None
    per_image = [sum(bool(x) for x in row) for row in labels.matrix]
    total = sum(per_image)
    return {
        "rows": label_strips(labels),
        "images": len(per_image),
        "shown": min(len(per_image), MAX_COLUMNS),
        "total": total,
        "share": 100 * total / max(len(per_image) * len(labels.tasks), 1),
        "split": ", ".join(f"{per_image.count(n)} with {plural(n, 'label')}" for n in sorted(set(per_image))),
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
    """Rows with the AUROC as a number and as a bar from 0.5, and one sentence that counts them."""
    found = data.uncertainty
    if found is None or not found.rows:
        return None
    rows = [
        {
            "row": row,
            "auroc": fixed(row.auroc, 2),
            "width": round(100 * abs(row.auroc - 0.5), 2) if math.isfinite(row.auroc) else 0,
            "tone": "good" if row.auroc > 0.5 else "bad",
        }
        for row in found.rows
    ]
    above, clearly = (sum(row.auroc > least for row in found.rows) for least in (0.5, 0.7))
    verdict = f"Uncertainty is higher where the prediction is wrong on {above} of {plural(len(rows), 'task')}"
    verdict += f", clearly so (above 0.7) on {clearly}." if above else "."
    return {"found": found, "rows": rows, "verdict": verdict}


def sample_sections(samples: Sequence[SamplePictures]) -> list[dict]:
    """Return pictures of images as the templates show them."""
    result = []
    for sample in samples:
        rows = [(row.task, [Cell(*cell) for cell in row.cells]) for row in sample.rows]
        captions = list(dict.fromkeys(cell.caption for _, cells in rows for cell in cells))
        table = []
        for task, cells in rows:
            by_caption = {
                cell.caption: {
                    "picture": None if cell.rgb is None else picture(cell.rgb),
                    "note": cell.note,
                    "scale": cell.scale,
                }
                for cell in cells
            }
            table.append({"task": task, "cells": [by_caption.get(caption) for caption in captions]})
        about = {"id": sample.id, "image": picture(sample.image), "note": sample.note}
        result.append(about | {"captions": captions, "rows": table})
    return result
