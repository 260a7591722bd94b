"""Read a run: configuration, labels, log, metrics.

Only `metrics.json` is required or, for an unfinished run, an evaluation in the log. All other files are
optional.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmtl.data import LabelMatrix
from dmtl.errors import DataError
from dmtl.evaluation.baseline import EVAL
from dmtl.runtime.files import float_from_json
from dmtl.tasks import Task, task_from_spec
from dmtl.train.log import RunLog

# Metrics for which lower is better; for all others higher is better.
LOWER_IS_BETTER = {"loss", "bce", "mean", "median", "rmse", "abs_err", "log_rmse", "abs_rel", "sq_rel"}
Metrics = Mapping[str, Mapping[str, float]]  # {task: {metric: value}}
INITIAL = "initial/"  # prefix of a task: metrics of the network's initial prediction
PERCENT = ("mIoU", "pixel_acc", "maxF", "pixelF", "odsF", "oisF", "AP", "within_")
TRAINING = "metrics.json"
SHOWN = ("config.toml", TRAINING, "log.jsonl")


class NoEvaluation(DataError):
    """A run has not reached its first evaluation."""


@dataclass
class Run:
    """A run, as far as its folder describes it.

    Attributes:
        path: the folder.
        metrics: {task: {metric: value}}; for an unfinished run, those of its last evaluation.
        primary: {task: (main metric, its value, whether higher is better)}.
        step: number of steps at which the metrics were computed; None: unknown.
        seconds: training time until then; None: unknown.
        config: content of config.toml.
        labels: the labels that training used; None: unknown.
        log: rows of log.jsonl.
        tasks: the tasks of the model by name.
        finished: whether the run is finished.
        file: name of the file with the metrics.
        protocol: how they were scored, if the file records it.
        sources: {source: metrics of its images}, if the data set joins several sources.
    """

    path: Path
    metrics: Metrics
    primary: Mapping[str, tuple[str, float, bool]]
    step: int | None = None
    seconds: float | None = None
    config: dict = field(default_factory=dict)
    labels: LabelMatrix | None = None
    log: list[dict] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    finished: bool = True
    file: str = TRAINING
    protocol: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Metrics] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.setting("optim", "seed", 0)

    @property
    def data_name(self) -> str:
        """Return the name of its data set, or "a+b" for several sources."""
        if sources := self.setting("data", "sources"):
            return "+".join(source["name"] for source in sources)
        return Path(os.path.normpath(str(self.setting("data", "root", "unknown data")))).name

    @property
    def planned_steps(self) -> int | None:
        """Return the configured number of steps; None if the configuration counts epochs."""
        steps = None if self.setting("optim", "epochs") else self.setting("optim", "steps")
        return steps if isinstance(steps, int) else None

    def rows(self, event: str) -> list[dict]:
        """Return the rows of the log with this event."""
        return [row for row in self.log if row.get("event") == event]

    def setting(self, section: str, key: str, default: object = None) -> Any:
        """Return a value of the run's configuration."""
        return self.config.get(section, {}).get(key, default)


def read_run(path: str | os.PathLike, unfinished: bool = False) -> Run:
    """Read the run in the folder `path`.

    Args:
        path: the folder.
        unfinished: also accept a run without `metrics.json`, and read it up to its last evaluation.

    Raises:
        DataError: the folder does not hold a (finished) run, or a file is damaged.
    """
    path = Path(path)
    log = RunLog.read(path / "log.jsonl")
    finished = not unfinished or (path / TRAINING).is_file()
    summary = _read(path / TRAINING) if finished else _last_evaluation(path, log)
    metrics, primary, sources = _metrics_in(summary, path / TRAINING, "dmtl train")
    seconds = summary.get("seconds") or max((row.get("seconds", 0.0) for row in log), default=None)
    run = Run(path, metrics, primary, summary.get("step"), seconds, log=log, finished=finished)
    run.sources = sources
    if (path / "config.toml").is_file():
        run.config = _read(path / "config.toml")
    if (path / "labels.csv").is_file():
        run.labels = LabelMatrix.read_csv(path / "labels.csv")
    if (path / "model" / "config.json").is_file():
        specs = _read(path / "model" / "config.json").get("tasks", [])
        run.tasks = {task.name: task for task in map(task_from_spec, specs)}
    return run


def with_evaluation(run: Run) -> Run:
    """Return the run with the metrics of its eval.json (from `dmtl eval --json`), if it has one.

    Raises:
        DataError: the file is damaged.
    """
    file = run.path / EVAL
    if not file.is_file():
        size = run.setting("data", "size") if run.setting("data", "resize", True) else None
        return dataclasses.replace(run, protocol={"size": size})
    found = _read(file)
    metrics, primary, sources = _metrics_in(found, file, "dmtl eval --json")
    protocol = found.get("protocol", {})
    if not isinstance(protocol, Mapping):
        raise DataError(f"{file}: protocol is {protocol!r}, expected an object")
    primary = {**run.primary, **primary}
    return dataclasses.replace(
        run, metrics=metrics, primary=primary, file=EVAL, protocol=protocol, sources=sources
    )


def find_runs(path: str | os.PathLike) -> list[Path]:
    """Return `path` if it is a run, otherwise every run below it, sorted; raise DataError if there is
    none."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: is not a folder, expected a run or a folder of runs")
    if any((path / name).is_file() for name in SHOWN):
        if not (path / "config.toml").is_file():
            raise DataError(f"{path}: has no config.toml, expected the folder of a run")
        return [path]
    found = sorted(file.parent for file in path.rglob("config.toml"))
    if not found:
        raise DataError(f"{path}: has no run in it, expected config.toml there or in folders below")
    return found


def read_all(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read runs, each folder only once; unfinished ones up to their last evaluation.

    Returns:
        The runs, and remarks on unfinished runs and on runs left out because they have no evaluation.

    Raises:
        DataError: no run has an evaluation.
    """
    runs, remarks = [], []
    paths = list(dict.fromkeys(Path(os.path.normpath(path)) for path in paths))
    for path in paths:
        try:
            runs.append(read_run(path, unfinished=True))
        except NoEvaluation as error:
            remarks.append(f"Left out: {error}")
            continue
        if not runs[-1].finished:
            total = f" of {runs[-1].planned_steps:,}" if runs[-1].planned_steps else ""
            at = f"at step {runs[-1].step:,}{total}"
            remarks.append(f"Unfinished: {path} counts with its last evaluation, {at}.")
    if not runs:
        raise DataError(f"{paths[0]}: has no run with an evaluation, expected at least one")
    return runs, remarks


def unit_of(metric: str, task: Task | None) -> str:
    """Return the unit of a metric to display; "" if unknown."""
    if metric.startswith(PERCENT):
        return "%"
    return "" if task is None else task.metric_unit(metric)


def _metrics_in(summary: Mapping, file: Path, writer: str) -> tuple[dict, dict, dict]:
    """Return `metrics`, `primary` and `sources` (as in `Run`) from the content of a file.

    `writer` is the command that wrote the file, for messages.
    """

    def read(metrics: Mapping) -> dict:
        return {str(t): {str(k): float_from_json(v) for k, v in m.items()} for t, m in metrics.items()}

    try:
        metrics = read(summary["metrics"])
        sources = {str(source): read(found) for source, found in summary.get("sources", {}).items()}
        primary = {
            str(t): (str(n), float_from_json(v), bool(h)) for t, (n, v, h) in summary["primary"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{file}: not as `{writer}` writes it ({error!r}), expected "metrics" and "primary" by task'
        ) from error
    return metrics, primary, sources


def _last_evaluation(path: Path, log: Sequence[dict]) -> dict:
    """Return what `metrics.json` would contain if the run had ended with its last evaluation.

    Logs of older runs do not name main metrics; then the first metric of each task is used.
    """
    rows = [row for row in log if row.get("event") == "eval" and row.get("metrics")]
    if not rows:
        raise NoEvaluation(f"{path}: has no evaluation yet, expected metrics.json or one in log.jsonl")
    if "primary" in rows[-1]:
        return rows[-1]
    primary = {}
    for task, metrics in rows[-1]["metrics"].items():
        if not task.startswith(INITIAL):
            name = next(iter(metrics))
            primary[task] = (name, metrics[name], name not in LOWER_IS_BETTER)
    return {**rows[-1], "primary": primary}


def _read(path: Path) -> dict:
    """Read the object in a JSON or TOML file of a run."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, expected the folder of a finished run")
    kind = path.suffix[1:].upper()
    try:
        value = (tomllib if kind == "TOML" else json).loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid {kind} ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value
