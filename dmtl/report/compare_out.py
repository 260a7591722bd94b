"""A comparison of runs as a page, and as CSV and JSON for machines."""

from __future__ import annotations

import csv
import io
import json
import os

from dmtl.report.compare import Comparison, summary
from dmtl.report.curves import curves, delta_chart, loss_chart
from dmtl.report.data import ReportData, Value, mean_of, spread_of
from dmtl.report.html import figure, gain_tone, metric_sections
from dmtl.report.methods import seed_of
from dmtl.report.page import page
from dmtl.runtime.files import write_text

COLUMNS = ("method", "task", "metric", "unit", "better", "main", "mean", "spread", "runs")


def write_page(path: str | os.PathLike, comparison: Comparison) -> None:
    """One HTML file that needs nothing else; OSError if it cannot be written."""
    runs = comparison.runs
    charts = [loss_chart(runs), *curves(runs, initial=False)[1:]]
    if comparison.gains:
        charts.insert(1, delta_chart(runs, comparison.reference))
    data = ReportData(
        title="Runs compared",
        metrics=comparison.rows(),
        order=list(comparison.methods),
        delta={letter: gain.value for letter, gain in comparison.gains.items()},
        curves=charts,
        notes=comparison.remarks,
    )
    values = {
        "warning": comparison.warning,
        "summary": [{**row, **_delta(comparison, row["letter"])} for row in summary(comparison)],
    }
    write_text(path, page("compare.html.j2", **metric_sections(data), **values))


def _delta(comparison: Comparison, letter: str) -> dict[str, str]:
    if letter not in comparison.gains:
        return {"delta": "", "spread": "", "tone": ""}
    mean, spread = _parts(comparison.gains[letter].value)
    text = figure(mean, 2, sign=True)
    return {
        "delta": text,
        "spread": "" if spread is None else figure(spread, 2),
        "tone": gain_tone(mean, spread),
    }


def write_csv(path: str | os.PathLike, comparison: Comparison) -> None:
    """One row a method and metric, Delta_MTL among them (in percent, no task). `spread` is a sample standard
    deviation, empty for a single run."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows():
        better = "higher" if row.higher_is_better else "lower"
        for letter, method in comparison.methods.items():
            if letter in row.values:
                about = (method.name, row.task, row.metric, row.unit, better, int(row.primary))
                writer.writerow([*about, *_parts(row.values[letter]), len(method.runs)])
    for letter, gain in comparison.gains.items():
        name = comparison.methods[letter].name
        writer.writerow([name, "", "Delta_MTL", "%", "higher", "", *_parts(gain.value), len(gain.each)])
    write_text(path, stream.getvalue())


def write_json(path: str | os.PathLike, comparison: Comparison) -> None:
    """All figures: methods with settings, runs, means, spreads, and Delta_MTL with what it was taken over."""
    rows, methods = comparison.rows(), []
    for letter, method in comparison.methods.items():
        figures: dict[str, dict] = {}
        for row in rows:
            if letter in row.values:
                mean, spread = _parts(row.values[letter])
                figures.setdefault(row.task, {})[row.metric] = {"mean": mean, "spread": spread}
        about = {"letter": letter, "name": method.name, "settings": method.settings, "metrics": figures}
        if letter in comparison.gains:
            gain = comparison.gains[letter]
            mean, spread = _parts(gain.value)
            basis = {"each": gain.each, "seeds": gain.seeds, "paired": gain.paired, "why": gain.why}
            about["delta"] = {"mean": mean, "spread": spread, **basis}
        about["runs"] = [
            {
                "path": str(run.path),
                "seed": seed_of(run),
                "finished": run.finished,
                "step": run.step,
                "seconds": run.seconds,
                "metrics": run.metrics,
            }
            for run in method.runs
        ]
        methods.append(about)
    whole = {
        "baseline": comparison.baseline.name,
        "warning": comparison.warning,
        "remarks": comparison.remarks,
        "methods": methods,
    }
    write_text(path, json.dumps(whole, indent=2) + "\n")


def _parts(value: Value) -> tuple[float, float | None]:
    return mean_of(value), spread_of(value)
