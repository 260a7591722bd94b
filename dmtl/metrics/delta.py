"""Compute Delta_MTL: the mean relative gain over all tasks compared with a reference, usually single-task
networks.

Delta = 100 / T sum_t s_t (M_t - R_t) / R_t,   s_t = +1 where higher is better, -1 where lower is
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol


class HasPrimary(Protocol):
    """The attributes of a task that `delta_mtl` needs."""

    @property
    def name(self) -> str: ...

    @property
    def primary(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...


class Judged(NamedTuple):
    """Name, main metric and direction of a task, read from a stored run."""

    name: str
    primary: str
    higher_is_better: bool


def judged(primary: Mapping[str, tuple[str, float, bool]]) -> list[Judged]:
    """Convert the mapping that runs store: {task: (main metric, its value, whether higher is better)}."""
    return [Judged(task, metric, higher) for task, (metric, _, higher) in primary.items()]


def delta_mtl(
    metrics: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, Mapping[str, float]],
    tasks: Mapping[str, HasPrimary] | Iterable[HasPrimary],
) -> float:
    """Return the mean relative gain of the tasks' primary metrics over the reference, in percent.

    Args:
        metrics: {task: Metric.compute()} of the method.
        reference: {task: Metric.compute()} of the reference, which was trained on the same labels.
        tasks: the tasks to average over, as a mapping by name or a list.

    Raises:
        ValueError: a task or its primary metric is missing or not finite, or that of the reference is 0.
    """
    tasks = list(tasks.values()) if isinstance(tasks, Mapping) else list(tasks)
    if not tasks:
        raise ValueError("delta_mtl: tasks must have at least one task, got none")
    gains = []
    for task in tasks:
        value = _primary("metrics", metrics, task)
        base = _primary("reference", reference, task)
        if base == 0:
            raise ValueError(f"delta_mtl: reference must not be 0 for {task.name} {task.primary}, got 0")
        gains.append((value - base) / base * (1 if task.higher_is_better else -1))
    return 100 * sum(gains) / len(gains)


def _primary(argument: str, table: Mapping[str, Mapping[str, float]], task: HasPrimary) -> float:
    value = table.get(task.name, {}).get(task.primary)
    if value is None or not math.isfinite(value):
        raise ValueError(
            f"delta_mtl: {argument} must be finite for {task.name} {task.primary}, got "
            f"{'nothing' if value is None else value}"
        )
    return value
