"""Runs that differ in their seed alone are one method; methods are called by what differs between them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmtl.data import made_to_order
from dmtl.errors import DataError
from dmtl.report.runs import NoEvaluation, Run, read_run
from dmtl.train.claim import FILE as CLAIM
from dmtl.train.config import RunConfig

# Keys and sections that say how and where a run was computed, not what was learned; and the seed.
APART = ("out", "device", "log", "execution", "optim.seed", "data.workers", "data.cache", "data.cache_dir")
EQUAL_TIME = "equal time"  # steps of a method of `dmtl claim` that has another's time: each seed's own
SHOWN = ("config.toml", "metrics.json", "log.jsonl")

Settings = dict[str, object]  # "optim.lr" -> value


@dataclass
class Method:
    """Runs of one configuration, in the order of their seeds."""

    name: str
    settings: Settings
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return [seed_of(run) for run in self.runs]


def seed_of(run: Run) -> int:
    return run.setting("optim", "seed", 0)


def find_runs(path: str | os.PathLike) -> list[Path]:
    """The run folder itself, or every run below a folder, sorted. DataError, naming it, where none is."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: is no folder, expected a run or a folder of runs")
    if any((path / name).is_file() for name in SHOWN):
        if not (path / "config.toml").is_file():
            raise DataError(f"{path}: has no config.toml, expected the folder of a run")
        return [path]
    found = sorted(file.parent for file in path.rglob("config.toml"))
    if not found:
        raise DataError(f"{path}: has no run in it, expected config.toml there or in folders below")
    return found


def read_all(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Runs, unfinished ones up to their last evaluation, each folder once; and what is to be said of those
    left out, because they have no evaluation yet."""
    runs, remarks = [], []
    for path in dict.fromkeys(Path(os.path.normpath(path)) for path in paths):
        try:
            runs.append(read_run(path, unfinished=True))
        except NoEvaluation as error:
            remarks.append(f"Left out: {error}")
    return runs, remarks


def methods_of(runs: Sequence[Run]) -> tuple[list[Method], list[str]]:
    """Runs by method, in the order of the first run of each; and remarks on keys that differ between methods
    but are not in their names."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings_of(run), sort_keys=True), []).append(run)
    settings = [json.loads(key) for key in groups]
    names, remarks = names_of(settings)
    if len(names) == 1:
        names = [runs[0].path.name]
    methods = [
        Method(*pair, sorted(own, key=seed_of))
        for *pair, own in zip(names, settings, groups.values(), strict=True)
    ]
    for method in methods:
        twice = sorted({seed for seed in method.seeds if method.seeds.count(seed) > 1})
        remarks += [f"{method.name} has several runs with seed {seed}." for seed in twice]
    return methods, remarks


def settings_of(run: Run) -> Settings:
    """What a run learned from and how, by key, with defaults where its file is older than a key."""
    config = run.config
    values: Settings = {}
    for key, default in dataclasses.asdict(RunConfig()).items():
        value = config.get(key, default)
        if isinstance(default, Mapping) != isinstance(value, Mapping):
            file = run.path / "config.toml"
            raise DataError(f"{file}: {key} is {value!r}, expected what `dmtl train` writes")
        _flatten(key, {**default, **value} if isinstance(default, Mapping) else value, values)
    values = {key: value for key, value in values.items() if not _apart(key)}
    values.pop("model.tasks", None)  # the data's
    if not made_to_order(str(values["data.root"])):  # a folder has as many images as it has
        del values["data.train_count"], values["data.val_count"]
    if _has_time_of_another(run):
        values |= {"optim.steps": EQUAL_TIME, "optim.warmup": EQUAL_TIME}
    return values


def names_of(settings: Sequence[Settings]) -> tuple[list[str], list[str]]:
    """A name for each, "model.diffusion=none, optim.lr=0.001": the keys that differ, of those that differ
    together the first; and a remark on every other one of them."""
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
    for text in (_text, str):  # in full where two would be called the same
        names = [", ".join(f"{key}={text(values.get(key))}" for key in shown.values()) for values in settings]
        if len(set(names)) == len(names):
            break
    return names, remarks


def _has_time_of_another(run: Run) -> bool:
    """Whether a run belongs to a method of `dmtl claim` whose steps follow from another method's time."""
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


def _apart(key: str) -> bool:
    return key in APART or key.partition(".")[0] in APART


def _text(value: object) -> str:
    """A value as short as it is likely to be understood; of a path its last part."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(_text, value)) + "]"
    return Path(value).name if isinstance(value, str) else str(value)
