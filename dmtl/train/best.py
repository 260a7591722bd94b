"""Track the best evaluation so far."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dmtl.metrics import delta_mtl
from dmtl.tasks import Task


class Best:
    """Keep the evaluation with the highest Delta_MTL, and count the evaluations after it.

    Delta_MTL is relative to `reference`, metrics by task. If the reference lacks a task, or its metric there
    is 0 or NaN, that task is compared with the first evaluation in which its primary metric is neither 0 nor
    NaN. Tasks that cannot be compared are ignored.
    """

    def __init__(self, tasks: Mapping[str, Task], reference: Mapping[str, Mapping[str, float]] | None = None):
        self.tasks = dict(tasks)
        self.reference: dict[str, float] = {}
        self.step: int | None = None
        self.delta, self.since = -math.inf, 0
        self._learn(reference or {})

    def judge(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> tuple[float, bool]:
        """Return Delta_MTL of an evaluation in percent, and whether it is the best so far.

        Delta_MTL is NaN if no task can be compared.
        """
        self._learn(metrics)
        tasks = [
            task
            for name, task in self.tasks.items()
            if name in self.reference and math.isfinite(metrics.get(name, {}).get(task.primary, math.nan))
        ]
        reference = {task.name: {task.primary: self.reference[task.name]} for task in tasks}
        delta = delta_mtl(metrics, reference, tasks) if tasks else math.nan
        better = delta > self.delta
        if better:
            self.step, self.delta, self.since = step, delta, 0
        else:
            self.since += 1
        return delta, better

    def state_dict(self) -> dict:
        """Return the state, which consists only of numbers."""
        return {key: getattr(self, key) for key in ("reference", "step", "delta", "since")}

    def load_state_dict(self, state: Mapping) -> None:
        for key, value in state.items():
            setattr(self, key, value)

    def _learn(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        for name, task in self.tasks.items():
            value = metrics.get(name, {}).get(task.primary, math.nan)
            if name not in self.reference and math.isfinite(value) and value != 0:
                self.reference[name] = value
