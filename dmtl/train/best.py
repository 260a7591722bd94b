"""Which evaluation was the best so far."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from dmtl.errors import ConfigError
from dmtl.metrics import delta_mtl
from dmtl.tasks import Task


class Best:
    """Keeps the evaluation with the highest Delta_MTL, and counts those that came since.

    Delta_MTL is told against `reference`, metrics by task; for a task that it lacks (or has as 0 or NaN)
    against the first evaluation in which the task's primary metric is neither. Tasks that cannot be compared
    take no part.
    """

    def __init__(self, tasks: Mapping[str, Task], reference: Mapping[str, Mapping[str, float]] | None = None):
        self.tasks = dict(tasks)
        self.reference = {}
        self.step: int | None = None
        self.delta, self.since = -math.inf, 0
        self._learn(reference or {})

    def judge(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> tuple[float, bool]:
        """(Delta_MTL of this evaluation in percent, NaN where no task can be compared; whether it is the best
        so far)."""
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
        """Numbers alone."""
        return {key: getattr(self, key) for key in ("reference", "step", "delta", "since")}

    def load_state_dict(self, state: Mapping) -> None:
        for key, value in state.items():
            setattr(self, key, value)

    def _learn(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        for name, task in self.tasks.items():
            value = metrics.get(name, {}).get(task.primary, math.nan)
            if name not in self.reference and math.isfinite(value) and value != 0:
                self.reference[name] = value


def read_reference(
    path: str | Path | None, option: str = "log.baseline"
) -> dict[str, dict[str, float]] | None:
    """Metrics by task from a run's folder or its metrics.json; None for None. `option` begins messages.

    Raises:
        ConfigError: nothing there, or no metrics in it.
    """
    if path is None:
        return None
    file = Path(path) / "metrics.json" if Path(path).is_dir() else Path(path)
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
        return {task: {name: float(v) for name, v in values.items()} for task, values in metrics.items()}
    except OSError as error:
        raise ConfigError(
            f"{option} must be a finished run or its metrics.json: {file}: {error.strerror}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{option}: {file}: holds no metrics of a run") from None
