"""What a run is in a table: its benchmark, its label setting, its method, and the figures that count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dmtl.errors import DataError
from dmtl.evaluation.baseline import EVAL
from dmtl.report.methods import seed_of
from dmtl.report.published_figures import BENCHMARKS, SETTINGS, Benchmark
from dmtl.report.runs import Metrics, Run, figures_of, read_json

METHODS = ("STL", "MTL", "MTPSL", "Prediction", "Feature")  # in the order of the paper's tables
TRAINING = "metrics.json"


@dataclass(frozen=True)
class Scored:
    """A run with the figures that count: those of its eval.json, whose `protocol` says how they were scored,
    or those of its metrics.json, scored as the run's configuration says."""

    run: Run
    metrics: Metrics
    primary: Mapping[str, tuple[str, float, bool]]
    file: str
    protocol: Mapping[str, object]

    @property
    def seed(self) -> int:
        return seed_of(self.run)


def read_scored(run: Run) -> Scored:
    """A run with the figures of its eval.json, if it has one; DataError, naming it, where it is damaged."""
    file = run.path / EVAL
    if not file.is_file():
        size = run.setting("data", "size") if run.setting("data", "resize", True) else None
        return Scored(run, run.metrics, run.primary, TRAINING, {"size": size})
    found = read_json(file)
    metrics, primary = figures_of(found, file, "dmtl eval --json")
    protocol = found.get("protocol", {})
    if not isinstance(protocol, Mapping):
        raise DataError(f"{file}: protocol is {protocol!r}, expected an object")
    return Scored(run, metrics, primary, EVAL, protocol)


def tasks_of(runs: Iterable[Scored]) -> dict[str, int]:
    """All tasks of some runs, with their number of classes (1 where a task has none)."""
    found: dict[str, int] = {}
    for scored in sorted(runs, key=lambda scored: -len(scored.run.primary)):
        for task in scored.run.primary:
            classes = getattr(scored.run.tasks.get(task), "classes", None)
            if classes is None:
                classes = [metric for metric in scored.run.metrics[task] if metric.startswith("IoU/")]
            found[task] = max(found.get(task, 1), len(classes))
    return found


def recognised(runs: Iterable[Scored]) -> Benchmark | None:
    """The benchmark whose tasks, class counts and names of images the runs of one data set have together."""
    runs = list(runs)
    tasks = tasks_of(runs)
    id = next((id for scored in runs if scored.run.labels is not None for id in scored.run.labels.ids), "")
    return next((known for known in BENCHMARKS.values() if known.recognises(tasks, id)), None)


def method_of(run: Run, several: bool) -> str:
    """Which of METHODS a run is. several: its data set has several tasks."""
    diffusion = str(run.setting("model", "diffusion", "none"))
    if diffusion != "none":
        return diffusion.capitalize()
    # older runs have the weight under a name of its own
    if run.setting("optim", "objectives", {}).get("mtpsl") or run.setting("optim", "consistency"):
        return "MTPSL"
    return "STL" if several and len(run.primary) == 1 else "MTL"


def setting_of(run: Run, others: Iterable[Scored]) -> str:
    """The label setting: what the configuration says, or counted from the labels that the run and the
    `others` with the same label table saw together (a single-task run sees one column)."""
    asked = run.setting("data", "labels", "unknown labels")
    if asked in SETTINGS:
        return str(asked)
    alike = [other.run for other in others if other.run.setting("data", "labels") == asked]
    seen: dict[str, set[str]] = {}
    tasks: set[str] = set()
    for labels in (other.labels for other in alike if other.labels is not None):
        tasks.update(labels.tasks)
        for id, row in zip(labels.ids, labels.matrix, strict=True):
            seen.setdefault(id, set()).update(t for t, on in zip(labels.tasks, row, strict=True) if on)
    if len(tasks) < 2:
        return f"labels of {Path(str(asked)).name}"
    counts = {len(labels) for labels in seen.values()}
    if counts == {len(tasks)}:
        return "full"
    return "one-label" if counts <= {0, 1} else "random-labels"
