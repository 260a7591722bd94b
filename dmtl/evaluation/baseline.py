"""Read the metrics of a baseline, and compute Delta_MTL compared with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from dmtl.errors import ConfigError
from dmtl.metrics.delta import delta_mtl, judged
from dmtl.runtime.files import float_from_json

EVAL = "eval.json"
"""Name of the file in a run's folder with the metrics of a separate evaluation."""

TaskMetrics = Mapping[str, Mapping[str, float]]
Primary = Mapping[str, tuple[str, float, bool]]
"""Task -> (name of its main metric, value, whether higher is better)."""


def read_reference(
    path: str | Path | None, option: str = "log.baseline"
) -> dict[str, dict[str, float]] | None:
    """Read metrics by task from a run's folder or its metrics.json.

    Args:
        path: the folder or file; None: return None.
        option: name of the option with the path, for messages.

    Raises:
        ConfigError: the file is missing or holds no metrics.
    """
    if path is None:
        return None
    file = Path(path) / "metrics.json" if Path(path).is_dir() else Path(path)
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
        return {
            task: {name: float_from_json(v) for name, v in values.items()} for task, values in metrics.items()
        }
    except OSError as error:
        raise ConfigError(
            f"{option} must be a finished run or its metrics.json: {file}: {error.strerror}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{option}: {file}: has no metrics, expected metrics.json of a run") from None


def read_baseline(paths: Iterable[str | Path]) -> dict[str, Mapping[str, float]]:
    """Read the metrics of stored runs by task; several single-task runs are combined.

    Args:
        paths: folders of runs, with eval.json or else metrics.json; or such files.

    Raises:
        ConfigError: a run has no metrics, or two runs have the same task.
    """
    reference: dict[str, Mapping[str, float]] = {}
    for path in paths:
        scored = Path(path) / EVAL
        found = read_reference(scored if scored.is_file() else path, "baseline") or {}
        for task, values in found.items():
            if task in reference and not task.startswith("initial/"):
                raise ConfigError(f"baseline: two runs have the task {task}; the second is {path}")
            reference[task] = values
    return reference


def check_baseline(reference: TaskMetrics, wanted: Mapping[str, str]) -> None:
    """Raise ConfigError unless the baseline has the metrics in `wanted` (task -> name of a metric).

    Call it before scoring, which may take long.
    """
    for task, metric in wanted.items():
        if not math.isfinite(reference.get(task, {}).get(metric, math.nan)):
            raise ConfigError(
                f"baseline has no {metric} of {task}; first evaluate its runs with the same protocol, and "
                f"write the result of each to its {EVAL}"
            )


def compare_with_baseline(
    metrics: TaskMetrics, primary: Primary, reference: TaskMetrics
) -> dict[str, object]:
    """Return {"delta_mtl": percent, "baseline": {task: [metric, value, gain in percent]}}.

    Raises:
        ConfigError: a value is not a number, or the baseline's is 0.
    """
    tasks = judged(primary)
    try:
        gains = {task.name: delta_mtl(metrics, reference, [task]) for task in tasks}
    except ValueError as error:
        raise ConfigError(f"baseline: {error}") from None
    compared = {t.name: [t.primary, reference[t.name][t.primary], gains[t.name]] for t in tasks}
    return {"delta_mtl": delta_mtl(metrics, reference, tasks), "baseline": compared}
