"""Make curves from the logs of runs: training loss, Delta_MTL and main metrics of each method over its
runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dmtl.metrics.delta import delta_mtl
from dmtl.report.runs.comparison import Comparison
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import INITIAL, Run, unit_of

Curve = dict[int, float]  # step -> value


@dataclass(frozen=True)
class Chart:
    """A line chart, in which points that are not finite are left out.

    Attributes:
        title: heading.
        x_label: label of the x axis.
        y_label: label of the y axis.
        series: name -> (x values, y values).
        log_y: use a logarithmic y axis.
        bands: name of a series -> spread around its line: (x values, lower y values, upper y values).
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] = field(
        default_factory=dict
    )


def curves(comparison: Comparison, initial: bool) -> list[Chart]:
    """Return charts of the training loss, Delta_MTL (if methods are compared) and every task's main metric.

    Args:
        comparison: the methods.
        initial: include the metrics of initial predictions.
    """
    methods = comparison.methods
    note = ", mean of runs" if any(len(method.runs) > 1 for method in methods.values()) else ""
    losses = {label: [_smooth(_losses(run)) for run in own.runs] for label, own in methods.items()}
    charts = [_chart(f"Training loss, smoothed{note}", "loss", losses, log_y=True)]
    if comparison.deltas:
        deltas = {label: [_delta(comparison, own, run) for run in own.runs] for label, own in methods.items()}
        charts.append(_chart(f"Delta_MTL ↑{note}", "%", deltas))
    first = comparison.baseline.runs[0]
    for task, (metric, _, higher) in first.primary.items():
        series = {}
        for label, own in methods.items():
            series[label] = [_metric(run, task, metric) for run in own.runs]
            before = [_metric(run, INITIAL + task, metric) for run in own.runs]
            if initial and any(before):
                series[f"{label}, initial map"] = before
        unit, arrow = unit_of(metric, first.tasks.get(task)), "↑" if higher else "↓"
        label = f"{metric} ({unit})" if unit else metric
        charts.append(_chart(f"{task} {arrow}{note}", label, series))
    return charts


def _delta(comparison: Comparison, method: Method, run: Run) -> Curve:
    found = {}
    for row in run.rows("eval"):
        with suppress(ValueError):  # the evaluation lacks a metric
            reference = comparison.reference(run.seed)
            found[row["step"]] = delta_mtl(row.get("metrics", {}), reference, method.judged)
    return found


def _chart(title: str, y_label: str, series: Mapping[str, Sequence[Curve]], log_y: bool = False) -> Chart:
    """Return a chart of the mean over runs, with a band of one standard deviation, at the steps that all runs
    have.

    A method without such steps keeps its place, so that each method has the same colour in all charts.
    """
    lines, bands = {}, {}
    for name, found in series.items():
        steps = sorted(set.intersection(*map(set, found)))
        means = [statistics.fmean(curve[step] for curve in found) for step in steps]
        lines[name] = (steps, means)
        if len(found) > 1:
            spread = [statistics.stdev(curve[step] for curve in found) for step in steps]
            pairs = list(zip(means, spread, strict=True))
            bands[name] = (steps, [m - s for m, s in pairs], [m + s for m, s in pairs])
    return Chart(title, "step", y_label, lines, log_y=log_y, bands=bands)


def _losses(run: Run) -> Curve:
    return _finite({row["step"]: row.get("loss") for row in run.rows("train")})


def _metric(run: Run, task: str, metric: str) -> Curve:
    rows = run.rows("eval")
    return _finite({row["step"]: row.get("metrics", {}).get(task, {}).get(metric) for row in rows})


def _finite(found: Mapping[int, float | None]) -> Curve:
    return {step: value for step, value in found.items() if value is not None and math.isfinite(value)}


def _smooth(curve: Curve) -> Curve:
    """Return a centred running mean over 1/20 of the curve, because the loss of one-label batches varies
    widely."""
    ys, half = list(curve.values()), len(curve) // 40
    return {x: statistics.fmean(ys[max(0, i - half) : i + half + 1]) for i, x in enumerate(curve)}
