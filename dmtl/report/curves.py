"""Curves of runs' logs, by method: the training loss, the main metric of every task, Delta_MTL; their mean
over runs and the spread around it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dmtl.report.data import Chart
from dmtl.report.figures import delta_of
from dmtl.report.runs import INITIAL, Metrics, Run, unit_of

Methods = Mapping[str, Sequence[Run]]
Curve = dict[int, float]  # step -> figure


def curves(methods: Methods, initial: bool = True) -> list[Chart]:
    """The training loss and every task's main metric, those of initial maps too where asked for."""
    first = next(iter(methods.values()))[0]
    charts = [loss_chart(methods)]
    for task, (metric, _, higher) in first.primary.items():
        series = {}
        for name, runs in methods.items():
            series[name] = [_evaluations(run, _metric(task, metric)) for run in runs]
            before = [_evaluations(run, _metric(INITIAL + task, metric)) for run in runs]
            if initial and any(before):
                series[f"{name}, initial map"] = before
        unit, arrow = unit_of(metric, first.tasks.get(task)), "↑" if higher else "↓"
        label = f"{metric} ({unit})" if unit else metric
        charts.append(_chart(f"{task} {arrow}{_note(methods)}", label, series))
    return charts


def loss_chart(methods: Methods) -> Chart:
    """The training loss of every method, each run's smoothed."""
    title = f"Training loss, smoothed{_note(methods)}"
    losses = {name: [_smooth(_losses(run)) for run in runs] for name, runs in methods.items()}
    return _chart(title, "loss", losses, log_y=True)


def delta_chart(methods: Methods, reference_of: Callable[[Run], Metrics]) -> Chart:
    """Delta_MTL of every evaluation against the metrics that `reference_of` gives for its run."""

    def gain(run: Run) -> Callable[[Metrics], float | None]:
        def of(metrics: Metrics) -> float | None:
            try:
                return delta_of(replace(run, metrics=metrics), reference_of(run))
            except ValueError:
                return None

        return of

    series = {name: [_evaluations(run, gain(run)) for run in runs] for name, runs in methods.items()}
    return _chart(f"Delta_MTL ↑{_note(methods)}", "%", series)


def _chart(title: str, y_label: str, series: Mapping[str, Sequence[Curve]], log_y: bool = False) -> Chart:
    """Mean over runs at the steps that all of them have, and one standard deviation to either side. A method
    without such steps keeps its place, and with it every method its colour in all charts."""
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


def _note(methods: Methods) -> str:
    return ", mean of runs" if any(len(runs) > 1 for runs in methods.values()) else ""


def _losses(run: Run) -> Curve:
    return _finite({row["step"]: row.get("loss") for row in run.rows("train")})


def _metric(task: str, metric: str) -> Callable[[Metrics], float | None]:
    return lambda metrics: metrics.get(task, {}).get(metric)


def _evaluations(run: Run, pick: Callable[[Metrics], float | None]) -> Curve:
    return _finite({row["step"]: pick(row.get("metrics", {})) for row in run.rows("eval")})


def _finite(found: Mapping[int, float | None]) -> Curve:
    return {step: value for step, value in found.items() if value is not None and math.isfinite(value)}


def _smooth(curve: Curve) -> Curve:
    """Centred running mean over a twentieth of the curve: one-label batches differ widely in their loss."""
    ys, half = list(curve.values()), len(curve) // 40
    return {x: statistics.fmean(ys[max(0, i - half) : i + half + 1]) for i, x in enumerate(curve)}
