"""Curves of a run's log: the training loss and the main metric of every task."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from dmtl.report.data import Chart
from dmtl.report.runs import INITIAL, Run, unit_of


def curves(methods: Mapping[str, Sequence[Run]]) -> list[Chart]:
    first = next(iter(methods.values()))[0]
    runs_note = "" if len(next(iter(methods.values()))) == 1 else ", mean of runs"
    losses = {
        name: _smooth(*_mean_curve(runs, "train", lambda row: row.get("loss")))
        for name, runs in methods.items()
    }
    charts = [Chart(f"Training loss, smoothed{runs_note}", "step", "loss", losses, log_y=True)]
    for task, (metric, _, higher) in first.primary.items():
        series = {}
        for name, runs in methods.items():
            for key, label in ((task, name), (INITIAL + task, f"{name}, initial map")):
                curve = _mean_curve(
                    runs, "eval", lambda row, key=key: row.get("metrics", {}).get(key, {}).get(metric)
                )
                if curve[0]:
                    series[label] = curve
        unit = unit_of(metric, first.tasks.get(task))
        arrow = "↑" if higher else "↓"
        charts.append(
            Chart(f"{task} {arrow}{runs_note}", "step", f"{metric} ({unit})" if unit else metric, series)
        )
    return charts


def _mean_curve(
    runs: Sequence[Run], event: str, pick: Callable[[dict], float | None]
) -> tuple[list[float], list[float]]:
    """Mean over runs at the steps that all of them logged."""
    curves = [{row["step"]: pick(row) for row in run.rows(event) if pick(row) is not None} for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, [statistics.fmean(curve[step] for curve in curves) for step in steps]


def _smooth(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Centred running mean over a twentieth of the curve: one-label batches differ widely in their loss."""
    half = len(ys) // 40
    return xs, [statistics.fmean(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))]
