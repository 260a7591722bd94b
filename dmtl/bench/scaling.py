"""How time and memory grow with the work: tasks, steps, pixels and batch, one at a time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dmtl.bench import clock, memory, work
from dmtl.bench.contenders import SIX, Case

AXES = ("tasks", "steps", "pixels", "batch")
PASSES = 2  # up and down again, so that what drifts does not look like growth


@dataclass(frozen=True)
class Fit:
    """time = constant + work / rate, with the least relative error.

    constant_s: what every call costs (transformed weights, launches, and stages that the axis does not touch
    where they run at another rate). deviation: the largest relative distance of a time from the line. slope:
    of log(time) over log(work), no constant taken off; 1 where time is proportional to all the work counted.
    """

    constant_s: float
    per_flop_s: float
    deviation: float
    slope: float


def fit(flops: Sequence[float], times_s: Sequence[float]) -> Fit:
    """The line through (work, time), weighted so that relative errors count; the constant is not below
    zero."""
    x, y = np.asarray(flops, float), np.asarray(times_s, float)
    constant, rate = _least_squares(np.stack([np.ones_like(x), x], 1), y)
    if constant < 0:
        constant, rate = 0.0, *_least_squares(x[:, None], y)
    deviation = float(np.max(np.abs((constant + rate * x) / y - 1)))
    slope = float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(set(x)) > 1 else 1.0
    return Fit(float(constant), float(rate), deviation, slope)


def _least_squares(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(columns / y[:, None], np.ones_like(y), rcond=None)[0]


def points(axis: str, case: Case, quick: bool = False) -> list[Case]:
    """The cases along one axis, the others as in `case`; fewer and smaller ones on a CPU."""
    gpu = case.device.startswith("cuda")
    if axis == "tasks":
        names = case.tasks or (case.all_tasks if case.model else SIX)
        base = case if case.model else case.but(all_tasks=tuple(SIX))
        return [base.but(tasks=tuple(names[:n])) for n in range(1, len(names) + 1)]
    if axis == "steps":
        return [case.but(steps=n) for n in ((1, 2, 4) if quick else (1, 2, 4, 8))]
    if axis == "batch":
        return [case.but(batch=n) for n in ((1, 2, 4, 8, 16, 32) if gpu else (1, 2, 4))]
    sides = (64, 96, 128) if quick else (256, 512, 768, 1024) if gpu else (256, 384, 512, 768)
    return [case.but(size=(side, side)) for side in sides]


def scaling(axis: str, case: Case, precision: str, *, quick: bool = False, rounds: int = 3) -> list[dict]:
    """Rows of one axis: a point each (time, work counted), and at the end the fit. Along "steps" the first
    and the last point also have their peak memory, each measured in a process of its own."""
    from dmtl.engine.engine import Engine

    cases = points(axis, case, quick)
    device = torch.device(case.device)
    engine = Engine(cases[0].build(), device, precision=precision, inplace=True)
    times = {index: [] for index in range(len(cases))}
    order = list(times)
    for number in range(PASSES):
        for index in order if number % 2 == 0 else reversed(order):
            times[index] += _times_s(engine, cases[index], device, rounds)
    wanted = [list(c.tasks or engine.tasks) for c in cases]
    flops = [
        work.flops(work.count(engine.config, c.size, c.batch, steps=c.steps, tasks=t))
        for c, t in zip(cases, wanted, strict=True)
    ]
    medians = [statistics.median(times[index]) for index in order]
    found = fit(flops, medians)
    facts = {"part": "scaling", "axis": axis, "precision": precision}
    rows = [
        facts
        | {"at": _place(axis, c, tasks), "size": list(c.size), "batch": c.batch, "tasks": tasks}
        | {"steps": c.steps, "flops": f, "ms": 1e3 * taken}
        | {"fit_ms": 1e3 * (found.constant_s + found.per_flop_s * f)}
        for c, tasks, f, taken in zip(cases, wanted, flops, medians, strict=True)
    ]
    if axis == "steps":
        for row, end in ((rows[0], cases[0]), (rows[-1], cases[-1])):
            row |= memory.peak(end, "dmtl", precision)
    last = {"at": "fit", "slope": found.slope, "deviation": found.deviation}
    return [*rows, facts | last | {"constant_ms": 1e3 * found.constant_s}]


def _times_s(engine, case: Case, device: torch.device, rounds: int) -> list[float]:
    image = case.image()

    def call() -> object:
        return engine.maps(image, case.tasks, steps=case.steps)

    call()
    return [clock.seconds(call, device) for _ in range(rounds)]


def _place(axis: str, case: Case, tasks: list[str]) -> int:
    """Where a point lies on its axis."""
    here = {"tasks": len(tasks), "steps": case.steps, "batch": case.batch}
    return case.size[0] * case.size[1] if axis == "pixels" else here[axis]
