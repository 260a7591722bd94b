"""Write a comparison of runs as CSV and JSON."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence

from dmtl.report.runs.comparison import Comparison, metric_rows
from dmtl.report.runs.values import mean_of, numbers_of, spread_of
from dmtl.runtime import files

COLUMNS = ("method", "task", "metric", "unit", "better", "main", "mean", "spread", "runs")


def write_csv(path: str | os.PathLike, comparison: Comparison) -> None:
    """Write CSV with one line for each method and metric, including Delta_MTL (in percent, without a task).

    `spread` is the sample standard deviation, empty for a single run.
    """
    lines: list[tuple] = []
    for row in metric_rows(comparison.methods):
        better = "higher" if row.higher_is_better else "lower"
        for label, value in row.values.items():
            method = comparison.methods[label]
            about = (method.name, row.task, row.metric, row.unit, better, int(row.primary))
            lines.append((*about, mean_of(value), spread_of(value), len(method.runs)))
    for label, delta in comparison.deltas.items():
        name, found = comparison.methods[label].name, (mean_of(delta.value), spread_of(delta.value))
        lines.append((name, "", "Delta_MTL", "%", "higher", "", *found, len(delta.each)))
    write_table(path, COLUMNS, lines)


def write_table(path: str | os.PathLike, columns: Sequence[str], lines: Iterable[Sequence]) -> None:
    """Write a CSV file atomically."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *lines])
    files.write_text(path, stream.getvalue())


def write_json(path: str | os.PathLike, comparison: Comparison) -> None:
    """Write JSON: methods with settings, runs, means and spreads, and Delta_MTL with its seeds and tasks."""
    rows, methods = metric_rows(comparison.methods), []
    for label, method in comparison.methods.items():
        metrics: dict[str, dict] = {}
        for row in (row for row in rows if label in row.values):
            metrics.setdefault(row.task, {})[row.metric] = numbers_of(row.values[label])
        about: dict[str, object] = {"label": label, "name": method.name}
        about |= {"settings": method.settings, "metrics": metrics}
        if label in comparison.deltas:
            delta = comparison.deltas[label]
            basis = {"each": delta.each, "seeds": delta.seeds, "paired": delta.paired, "why": delta.why}
            about["delta"] = numbers_of(delta.value) | basis
        keys = ("seed", "finished", "step", "seconds", "metrics")
        about["runs"] = [
            {"path": str(run.path)} | {key: getattr(run, key) for key in keys} for run in method.runs
        ]
        methods.append(about)
    whole = {
        "baseline": comparison.baseline.name,
        "warning": comparison.warning,
        "remarks": comparison.remarks,
        "methods": methods,
    }
    files.write_json(path, whole)
