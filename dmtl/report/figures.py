"""Figures of runs: rows of the metric table, and Delta_MTL of one run against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmtl.metrics.delta import delta_mtl, judged
from dmtl.report.data import MetricRow, value_of
from dmtl.report.runs import INITIAL, LOWER_IS_BETTER, Metrics, Run, unit_of


def delta_of(run: Run, reference: Metrics) -> float:
    """Delta_MTL of a run's metrics in percent, over its tasks. ValueError where a figure is missing, not
    finite, or 0 in the reference."""
    return delta_mtl(run.metrics, reference, judged(run.primary))


def metric_rows(methods: Mapping[str, Sequence[Run]], initial: bool = True) -> list[MetricRow]:
    """The main metric of each task first, then its others; classes' own IoUs would fill pages and are left
    out. A method without a metric in one of its runs has no value there.

    initial: with columns for the initial maps of the same networks, which tell what denoising adds.
    """
    known: dict[str, Run] = {}
    for run in (run for runs in methods.values() for run in runs):
        for task in run.primary:
            known.setdefault(task, run)
    rows = []
    for task, first in known.items():
        primary, _, higher = first.primary[task]
        others = [m for m in first.metrics[task] if m != primary and not m.startswith("IoU/")]
        for metric in [primary, *others]:
            values = {}
            for name, runs in methods.items():
                columns = ((task, name), (INITIAL + task, f"{name}, initial map"))
                for key, column in columns if initial else columns[:1]:
                    found = [run.metrics[key][metric] for run in runs if metric in run.metrics.get(key, {})]
                    if len(found) == len(runs):
                        values[column] = value_of(found)
            unit = unit_of(metric, first.tasks.get(task))
            better = higher if metric == primary else metric not in LOWER_IS_BETTER
            rows.append(MetricRow(task, metric, unit, better, values, metric == primary))
    return rows
