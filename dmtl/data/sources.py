"""Join several data sets: the union of their images and tasks. No image needs labels of all tasks.

    [[data.sources]]
    root = "nyud"
    weight = 2.0
    drop = ["edge"]
    [[data.sources]]
    root = "bsds"
    rename = {boundaries = "edge"}

The id of an image is "SOURCE/ID". Sources that share a task must agree on its options and on the names of its
classes. The order of the classes may differ: labels are converted to the ids of the first source.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample, unknown_name
from dmtl.data.folder.paths import nfc
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.wrappers import Wrapper
from dmtl.data.shards.member import Member, is_shards
from dmtl.errors import ConfigError, DataError
from dmtl.fields import convert_fields
from dmtl.tasks import KINDS, Task, make_task


@dataclass(frozen=True)
class Source:
    """One of several data sets that a model learns from.

    Raises:
        ConfigError: a value that cannot work.
    """

    root: str = ""
    """As `data.root`."""
    name: str = ""
    """Name of the source: ids of its images are "NAME/ID". Default: the name of the folder; for
    shards, of the folder that contains them."""
    weight: float = 1.0
    """How often an epoch draws each of its images; 0.5 draws a random half of them in each epoch."""
    drop: list[str] = field(default_factory=list)
    """Tasks of the data set that are not used."""
    rename: dict[str, str] = field(default_factory=dict)
    """Name of a task in the data set -> name to use instead."""

    def __post_init__(self) -> None:
        if not self.root:
            raise ConfigError("data.sources: a source has no root, expected a folder with dataset.yaml")
        if self.root.endswith(".toml"):
            raise ConfigError(
                f"data.sources: root is the configuration {self.root}, expected a data set; list the sources "
                "of that file here"
            )
        if not self.name:
            place = os.path.dirname(self.root) if is_shards(self.root) else self.root
            object.__setattr__(self, "name", os.path.basename(os.path.abspath(place)))
        if self.name in ("", ".", "..") or "/" in self.name or not self.name.isprintable():
            raise ConfigError(
                f"data.sources: the name of {self.root} must be printable and without /, got {self.name!r}; "
                'set another: name = "..."'
            )
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"data.sources: weight of {self.name} must be above 0 and finite, got {self.weight}"
            )


class Part(Wrapper):
    """One source of several: ids begin with its name, and tasks are renamed or left out."""

    def __init__(self, dataset: LabelledImages, source: Source):
        super().__init__(dataset)
        self.name, self.ids = source.name, [f"{source.name}/{id}" for id in dataset.ids]
        self.weight = source.weight
        self._own = _names(dataset, source)  # name of a task here -> in the data set
        self.tasks = {new: _renamed(dataset.tasks[own], new, source) for new, own in self._own.items()}
        self._renamed = dict(self.tasks)
        self._ids: dict[str, Tensor] = {}  # task -> uint8 [256], an id of the data set -> the id here
        self.boundary_task = next((n for n, own in self._own.items() if own == dataset.boundary_task), None)

    def adopt(self, tasks: Mapping[str, Task]) -> None:
        """Keep only these tasks, and convert labels to their class ids and `ignore` values."""
        for name in [name for name in self.tasks if name not in tasks]:
            del self.tasks[name], self._own[name]
        for name in self.tasks:
            mine = self.dataset.tasks[self._own[name]]
            self.tasks[name] = tasks[name]
            if count := len(mine.label_names):
                ids = torch.full((256,), int(tasks[name].ignore))
                ids[:count] = self._renamed[name].to_terms_of(tasks[name])(torch.arange(count))
                self._ids[name] = ids.to(torch.uint8)

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        names = {self._own[task]: task for task in self.wanted(tasks)}
        sample = self.dataset.read(index, names)
        labels = {names[own]: self._label(names[own], label) for own, label in sample.labels.items()}
        return replace(sample, id=self.ids[index], labels=labels)

    def _label(self, task: str, label_KHW: Tensor) -> Tensor:
        """Convert a label of the data set to the class ids and the `ignore` value of `tasks`."""
        if task in self._ids:
            return self._ids[task][label_KHW.long()]
        mine, ours = self.dataset.tasks[self._own[task]], self.tasks[task]
        if mine.ignore == ours.ignore:
            return label_KHW
        return label_KHW.masked_fill(~mine.valid(label_KHW), ours.ignore)

    def available(self) -> LabelMatrix:
        own = self._exists.subset(tasks=list(self._own.values()))
        return LabelMatrix(self.ids, list(self.tasks), own.matrix)

    def label_file(self, index: int, task: str) -> Path | Member | None:
        return self.dataset.label_file(index, self._own[task])

    def stored(self, index: int, task: str) -> np.ndarray | None:
        return self.dataset.stored(index, self._own[task])

    def identity(self, task: str | None = None) -> list:
        if task is None:
            return self.dataset.identity()
        ids = self._ids[task].tolist() if task in self._ids else self.tasks[task].ignore
        return ["Part", ids, self.dataset.identity(self._own[task])]

    def definition(self, task: str) -> dict[str, Any]:
        return self.dataset.definition(self._own[task])

    def unread(self, task: str) -> list[str]:
        return self.dataset.unread(self._own[task])

    def missing(self, task: str) -> list[str]:
        return self.dataset.missing(self._own[task])


class Joined(LabelledImages):
    """The images of several parts, one part after the other, with the union of their tasks.

    `evaluation` has the settings that all parts which have any agree on.

    Args:
        parts: the sources; their names must differ.
        tasks: names of the tasks to use; None: all. Parts without any of them are left out.

    Raises:
        ConfigError: two parts mean different things by the name of a task.
        DataError: an unknown task.
    """

    def __init__(self, parts: Sequence[Part], tasks: Iterable[str] | None = None):
        union = _union(parts)
        name = "+".join(part.name for part in parts)
        for task in tasks or ():
            if task not in union:
                raise DataError(f"{name}: {unknown_name('task', task, union)}")
        chosen = {t: task for t, task in union.items() if tasks is None or t in set(tasks)}
        for part in parts:
            part.adopt(chosen)
        self.parts = [part for part in parts if part.tasks]
        self._first = np.cumsum([0, *(len(part) for part in self.parts)])
        super().__init__(name, parts[0].split, chosen, [id for part in self.parts for id in part.ids])
        self.sources = {part.name: part.weight for part in self.parts}
        given: dict[str, list] = {}
        for part in self.parts:
            for key, value in part.evaluation.items():
                given.setdefault(key, []).append(value)
        self.evaluation = {k: values[0] for k, values in given.items() if all(v == values[0] for v in values)}

    def _at(self, index: int) -> tuple[Part, int]:
        """Return the part that has the image, and the image's index in that part."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return self.parts[number], index - int(self._first[number])

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        part, at = self._at(index)
        return part.read(at, [task for task in self.wanted(tasks) if task in part.tasks])

    def available(self) -> LabelMatrix:
        matrix = np.zeros((len(self), len(self.tasks)), bool)
        columns = {task: number for number, task in enumerate(self.tasks)}
        for part, first in zip(self.parts, self._first):
            matrix[first : first + len(part), [columns[t] for t in part.tasks]] = part.available().matrix
        return LabelMatrix(self.ids, list(self.tasks), matrix)

    def image_file(self, index: int) -> Path | Member | None:
        part, at = self._at(index)
        return part.image_file(at)

    def label_file(self, index: int, task: str) -> Path | Member | None:
        part, at = self._at(index)
        return part.label_file(at, task) if task in part.tasks else None

    def shard_numbers(self) -> np.ndarray | None:
        numbers = [part.shard_numbers() for part in self.parts]
        if all(each is None for each in numbers):
            return None
        return np.concatenate(
            [np.full(len(part), -1) if p is None else p for p, part in zip(numbers, self.parts)]
        )

    def stored(self, index: int, task: str) -> np.ndarray | None:
        part, at = self._at(index)
        return part.stored(at, task) if task in part.tasks else None

    def boundaries(self, index: int) -> Tensor | None:
        part, at = self._at(index)
        return part.boundaries(at) if part.boundary_task == self.boundary_task else None

    def unread(self, task: str) -> list[str]:
        return [f"{part.name}: {n}" for part in self.parts if task in part.tasks for n in part.unread(task)]

    def missing(self, task: str) -> list[str]:
        return [sentence for part in self.parts if task in part.tasks for sentence in part.missing(task)]

    def identity(self, task: str | None = None) -> list:
        parts = self.parts if task is None else [part for part in self.parts if task in part.tasks]
        return ["Joined", self.ids, *([part.name, part.identity(task)] for part in parts)]

    def definition(self, task: str) -> dict[str, Any]:
        """Add the definition of each source."""
        each = {part.name: part.definition(task) for part in self.parts if task in part.tasks}
        return {**self.tasks[task].spec(), "sources": each}


def read_sources(path: str | os.PathLike) -> list[Source]:
    """Return the `[[data.sources]]` of a configuration file such as a run's config.toml.

    Files that the configuration extends are not read.

    Raises:
        ConfigError: the file cannot be read or has no sources; a key or value is wrong.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
    data = values.get("data", {})
    tables = data.get("sources") if isinstance(data, dict) else None
    if not tables or not isinstance(tables, list):
        raise ConfigError(
            f"{path}: has no [[data.sources]], so it names no data (files it extends are not read)"
        )
    try:
        return [
            Source(**convert_fields(Source, table, f"data.sources[{n}].")) for n, table in enumerate(tables)
        ]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_names(sources: Iterable[Source]) -> None:
    """Raise ConfigError if two sources have the same name."""
    roots: dict[str, str] = {}
    for source in sources:
        if source.name in roots:
            raise ConfigError(
                f"data.sources: {roots[source.name]} and {source.root} are both called {source.name!r}; "
                'give one of them another name = "..."'
            )
        roots[source.name] = source.root


def _names(dataset: LabelledImages, source: Source) -> dict[str, str]:
    """Return the tasks that a source contributes: new name -> name in its data set."""
    kept = [task for task in dataset.tasks if task not in source.drop]
    for key, tasks, known in (("drop", source.drop, dataset.tasks), ("rename", source.rename, kept)):
        for task in tasks:
            if task not in known:
                unknown = unknown_name("task", task, known)
                raise ConfigError(f"data.sources: {key} of {source.name}: {unknown}")
    names: dict[str, str] = {}
    for own in kept:
        new = source.rename.get(own, own)
        if new in names:
            raise ConfigError(
                f"data.sources: {source.name} has two tasks called {new!r}, {names[new]} and {own}; drop one "
                "or rename it to another name"
            )
        names[new] = own
    if not names:
        raise ConfigError(f"data.sources: drop of {source.name} leaves no task; leave the source out")
    return names


def _renamed(task: Task, name: str, source: Source) -> Task:
    """Return a task under another name.

    The new name also decides the defaults: a task that is renamed to `edge` gets the loss and weight of
    `edge`.
    """
    if task.name == name:
        return task
    # Keep what the old name implied. What neither the old name nor dataset.yaml set follows from the new
    # name.
    implied = {f.name: f.default for cls in (type(task), KINDS[task.kind]) for f in fields(cls)}
    options = {k: v for k, v in task.spec().items() if k not in ("name", "kind") and v != implied[k]}
    try:
        return make_task(name, task.kind, **options)
    except ConfigError as error:
        raise ConfigError(
            f"data.sources: {source.name} cannot rename {task.name} to {name}: {error}"
        ) from None


def _union(parts: Sequence[Part]) -> dict[str, Task]:
    """Return the tasks of all parts; raise ConfigError if two parts define a task differently."""
    union: dict[str, Task] = {}
    first: dict[str, str] = {}
    for part in parts:
        for name, task in part.tasks.items():
            if name not in union:
                union[name], first[name] = task, part.name
                continue
            differ = _differences(union[name], task)
            if differ:
                told = "; ".join(
                    f"{key} is {mine} in {first[name]} and {other} in {part.name}"
                    for key, mine, other in differ
                )
                raise ConfigError(
                    f"data.sources: {first[name]} and {part.name} differ about {name}: {told}. "
                    f'Rename one (rename = {{{name} = "..."}}), leave one out (drop = ["{name}"]), '
                    "or make them equal in dataset.yaml (`values:` says which class a stored value means)"
                )
    return union


def _differences(one: Task, other: Task) -> list[tuple[str, str, str]]:
    """Return the options in which two tasks differ, as (name, value of one, value of other).

    The order of the classes and the `ignore` value may differ.
    """
    mine, theirs = ({k: v for k, v in task.spec().items() if k != "ignore"} for task in (one, other))
    if sorted(map(nfc, one.label_names)) == sorted(map(nfc, other.label_names)):
        mine.pop("classes", None)
        theirs.pop("classes", None)
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    return [(key, _shown(mine.get(key)), _shown(theirs.get(key))) for key in keys]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
