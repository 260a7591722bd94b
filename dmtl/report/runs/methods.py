"""Group runs that differ only in their seed into methods, and name methods by what differs."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dmtl.data import made_to_order
from dmtl.errors import DataError
from dmtl.metrics.delta import Judged, judged
from dmtl.report.runs.run import INITIAL, Metrics, Run
from dmtl.report.runs.values import Value, value_of
from dmtl.text import duration
from dmtl.train.claim import FILE as CLAIM
from dmtl.train.config import RunConfig

# Keys and sections that do not define what a run learned, but how and where it was computed; and the seed.
APART = ("out", "device", "log", "execution", "optim.seed", "data.workers", "data.cache", "data.cache_dir")
EQUAL_TIME = "equal time"  # stands for the steps of a `dmtl claim` method with `time_of`: they differ by seed
KINDS = ("STL", "MTL", "MTPSL", "Prediction", "Feature")  # in the order of the paper's tables

Settings = dict[str, object]  # "optim.lr" -> value


@dataclass
class Method:
    """Runs of one configuration that differ in their seed or, for single-task runs, in their task."""

    name: str
    runs: Sequence[Run]
    settings: Settings = field(default_factory=dict)

    @cached_property
    def by_seed(self) -> dict[int, Metrics]:
        """Return metrics by seed; those of single-task runs are merged.

        If a seed has several runs of a task, the first one counts.
        """
        found: dict[int, Metrics] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            found[run.seed] = {**run.metrics, **found.get(run.seed, {})}
        return found

    @property
    def seeds(self) -> list[int]:
        return list(self.by_seed)

    @property
    def judged(self) -> list[Judged]:
        """Return the main metric of every task."""
        return judged({task: about for run in self.runs for task, about in run.primary.items()})

    def values(self, task: str, metric: str) -> list[float]:
        """Return a metric of every seed that has it."""
        found = (metrics.get(task, {}).get(metric) for metrics in self.by_seed.values())
        return [value for value in found if value is not None]

    def value(self, task: str, metric: str) -> Value | None:
        """Return a metric over seeds; None if a seed lacks it."""
        values = self.values(task, metric)
        return value_of(values) if values and len(values) == len(self.by_seed) else None

    def steps(self) -> str:
        """Return the number of steps of its runs as text, "2,000" or "1,900 to 2,000"."""
        steps = sorted({run.step for run in self.runs if run.step is not None})
        return " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))) if steps else "n/a"

    def time(self) -> str:
        """Return the mean training time of its runs as text; "" if unknown."""
        times = [run.seconds for run in self.runs if run.seconds]
        return duration(statistics.fmean(times)) if times else ""

    def initial(self) -> Method | None:
        """Return the same runs with the metrics of their initial predictions; None if they have none."""
        runs = []
        for run in self.runs:
            metrics = {t: run.metrics[INITIAL + t] for t in run.primary if INITIAL + t in run.metrics}
            runs.append(dataclasses.replace(run, metrics=metrics))
        return Method(f"{self.name}, initial map", runs) if any(run.metrics for run in runs) else None

    def repeated(self) -> list[str]:
        """Return a remark on every run that does not count, because another run has the same seed and
        tasks."""
        seen, remarks = set(), []
        for run in self.runs:
            key = (run.seed, tuple(run.primary))
            if key in seen:
                remarks.append(
                    f"{self.name} has several runs with seed {run.seed}: {run.path} is not counted."
                )
            seen.add(key)
        return remarks


def kind_of(run: Run, several: bool) -> str:
    """Return which of KINDS a run is.

    Args:
        several: whether its data set has several tasks.
    """
    diffusion = str(run.setting("model", "diffusion", "none"))
    if diffusion != "none":
        return diffusion.capitalize()
    # Older runs store the weight of "mtpsl" under another name.
    if run.setting("optim", "objectives", {}).get("mtpsl") or run.setting("optim", "consistency"):
        return "MTPSL"
    return "STL" if several and len(run.primary) == 1 else "MTL"


def methods_of(runs: Sequence[Run]) -> tuple[list[Method], list[str]]:
    """Group runs into methods, in the order of each method's first run.

    Also returns remarks on keys that differ between methods but are not in their names.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings_of(run), sort_keys=True), []).append(run)
    settings = [json.loads(key) for key in groups]
    names, remarks = names_of(settings)
    if len(names) == 1:
        names = [runs[0].path.name]
    methods = [
        Method(name, sorted(own, key=lambda run: run.seed), about)
        for name, own, about in zip(names, groups.values(), settings, strict=True)
    ]
    return methods, remarks + [remark for method in methods for remark in method.repeated()]


def settings_of(run: Run) -> Settings:
    """Return the settings that define what a run learned; keys that its file lacks have their defaults."""
    config = run.config
    values: Settings = {}
    for key, default in dataclasses.asdict(RunConfig()).items():
        value = config.get(key, default)
        if isinstance(default, Mapping) != isinstance(value, Mapping):
            file = run.path / "config.toml"
            raise DataError(f"{file}: {key} is {value!r}, expected what `dmtl train` writes")
        _flatten(key, {**default, **value} if isinstance(default, Mapping) else value, values)
    values = {key: value for key, value in values.items() if not {key, key.partition(".")[0]} & set(APART)}
    values.pop("model.tasks", None)  # follow from the data
    if not made_to_order(str(values["data.root"])):  # the number of images in a folder is fixed
        del values["data.train_count"], values["data.val_count"]
    if _has_time_of_another(run):
        values |= {"optim.steps": EQUAL_TIME, "optim.warmup": EQUAL_TIME}
    return values


def names_of(settings: Sequence[Settings]) -> tuple[list[str], list[str]]:
    """Return a name for each method, such as "model.diffusion=none, optim.lr=0.001", and remarks.

    A name lists the keys that differ. If several keys always differ together, the name has only the first
    one, and the others get a remark.
    """
    keys = list(dict.fromkeys(key for values in settings for key in values))
    shown: dict[tuple, str] = {}
    remarks = []
    for key in sorted(keys, key=lambda key: not key.startswith("model.")):
        found = [json.dumps(values.get(key)) for values in settings]
        split = tuple(map(found.index, found))
        if not any(split):
            continue
        if split in shown:
            each = dict.fromkeys(_text(values.get(key)) for values in settings)
            remarks.append(f"{key} differs where {shown[split]} does: {', '.join(each)}.")
        else:
            shown[split] = key
    for text in (_text, str):  # values are written in full if two names would otherwise be equal
        names = [", ".join(f"{key}={text(values.get(key))}" for key in shown.values()) for values in settings]
        if len(set(names)) == len(names):
            break
    return names, remarks


def _has_time_of_another(run: Run) -> bool:
    """Return whether a run belongs to a `dmtl claim` method whose steps follow from another's training
    time."""
    try:
        claim = json.loads((run.path.parent.parent / CLAIM).read_text(encoding="utf-8"))
        return claim["methods"][run.path.name]["time_of"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _flatten(key: str, value: object, into: Settings) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _flatten(f"{key}.{name}", inner, into)
    else:
        into[key] = value


def _text(value: object) -> str:
    """Return a value in short form; for a path, its last part."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(_text, value)) + "]"
    return Path(value).name if isinstance(value, str) else str(value)
