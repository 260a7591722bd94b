"""Read runs: configuration, labels, log, metrics.

Only `metrics.json` must be there, or an evaluation in the log of an unfinished run; all else may be missing.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmtl.data import LabelMatrix
from dmtl.errors import DataError
from dmtl.tasks import Task, task_from_spec
from dmtl.train.log import RunLog

# Metrics that fall as maps get better; every other one rises.
LOWER_IS_BETTER = {"loss", "bce", "mean", "median", "rmse", "abs_err", "log_rmse", "abs_rel", "sq_rel"}
Metrics = Mapping[str, Mapping[str, float]]  # {task: {metric: value}}
INITIAL = "initial/"  # before a task: metrics of the initial map of the same network
PERCENT = ("mIoU", "pixel_acc", "maxF", "pixelF", "odsF", "oisF", "AP", "within_")


class NoEvaluation(DataError):
    """A run that has not come to its first evaluation."""


@dataclass
class Run:
    """A run. `metrics` is {task: {metric: value}}, `primary` {task: (metric, value, higher is better)}; of an
    unfinished run those of its last evaluation, at `step`, so far in `seconds` of training."""

    path: Path
    metrics: dict[str, dict[str, float]]
    primary: dict[str, tuple[str, float, bool]]
    step: int | None = None
    seconds: float | None = None
    config: dict = field(default_factory=dict)
    labels: LabelMatrix | None = None
    log: list[dict] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    finished: bool = True

    def rows(self, event: str) -> list[dict]:
        """Rows of the log with this event."""
        return [row for row in self.log if row.get("event") == event]

    def setting(self, section: str, key: str, default: object = None) -> object:
        """A value of the run's configuration."""
        return self.config.get(section, {}).get(key, default)

    @property
    def planned_steps(self) -> int | None:
        """Steps that its configuration asks for; None where that counts epochs instead."""
        steps = None if self.setting("optim", "epochs") else self.setting("optim", "steps")
        return steps if isinstance(steps, int) else None


def read_run(path: str | os.PathLike, unfinished: bool = False) -> Run:
    """The run in the folder `path`.

    Args:
        unfinished: read a run without `metrics.json` too, up to its last evaluation.

    DataError, naming the file, when it is no (finished) run or a file is damaged.
    """
    path = Path(path)
    log = RunLog.read(path / "log.jsonl")
    finished = not unfinished or (path / "metrics.json").is_file()
    summary = read_json(path / "metrics.json") if finished else _last_evaluation(path, log)
    metrics, primary = figures_of(summary, path / "metrics.json", "dmtl train")
    seconds = summary.get("seconds") or max((row.get("seconds", 0.0) for row in log), default=None)
    run = Run(path, metrics, primary, summary.get("step"), seconds, log=log, finished=finished)
    if (path / "config.toml").is_file():
        run.config = _toml(path / "config.toml")
    if (path / "labels.csv").is_file():
        run.labels = LabelMatrix.read_csv(path / "labels.csv")
    if (path / "model" / "config.json").is_file():
        specs = read_json(path / "model" / "config.json").get("tasks", [])
        run.tasks = {task.name: task for task in map(task_from_spec, specs)}
    return run


def figures_of(summary: Mapping, file: Path, writer: str) -> tuple[dict, dict]:
    """`metrics` and `primary`, as in `Run`, of what the command `writer` wrote into `file`; DataError, naming
    it, where they are not there."""
    try:
        metrics = {str(t): {str(k): float(v) for k, v in m.items()} for t, m in summary["metrics"].items()}
        primary = {str(t): (str(n), float(v), bool(h)) for t, (n, v, h) in summary["primary"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{file}: not as `{writer}` writes it ({error!r}), expected "metrics" and "primary" by task'
        ) from error
    return metrics, primary


def read_runs(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Run]:
    """One run, or several of one method (seeds). DataError when their tasks or main metrics differ."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    runs = [read_run(path) for path in paths]
    if not runs:
        raise ValueError("report_from_runs: runs must name at least one run, got none")
    for run in runs[1:]:
        require_same_tasks(runs[0], run)
    return runs


def require_same_tasks(first: Run, other: Run) -> None:
    """DataError unless both runs have the same tasks with the same main metrics."""
    mine, theirs = ({t: n for t, (n, _, _) in run.primary.items()} for run in (first, other))
    if mine != theirs:
        raise DataError(f"{other.path}: main metrics {theirs}, expected those of {first.path}: {mine}")


def unit_of(metric: str, task: Task | None) -> str:
    """Unit for people, as far as it is known."""
    if metric.startswith(PERCENT):
        return "%"
    return "" if task is None else task.metric_unit(metric)


def _last_evaluation(path: Path, log: Sequence[dict]) -> dict:
    """What `metrics.json` would say had the run ended with its last evaluation. The log names no main
    metrics: a task's is its first."""
    rows = [row for row in log if row.get("event") == "eval" and row.get("metrics")]
    if not rows:
        raise NoEvaluation(f"{path}: has no evaluation yet, expected metrics.json or one in log.jsonl")
    primary = {}
    for task, metrics in rows[-1]["metrics"].items():
        if not task.startswith(INITIAL):
            name = next(iter(metrics))
            primary[task] = (name, metrics[name], name not in LOWER_IS_BETTER)
    return {**rows[-1], "primary": primary}


def read_json(path: Path) -> dict:
    """The JSON object in a file of a run; DataError, naming it, where there is none."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, expected the folder of a finished run")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid TOML ({error})") from None
