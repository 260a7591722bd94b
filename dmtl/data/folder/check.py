"""Check a data set for problems, and summarise what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.images import appearance
from dmtl.data.labels.occurrence import Occurrence, is_unscaled
from dmtl.data.parallel import in_parallel
from dmtl.data.shards.member import AnyFile
from dmtl.errors import DataError
from dmtl.tasks import Task

KINDS = {
    "file": "files that cannot be read",
    "value": "labels with invalid values",
    "vector": "label files with vectors that are not unit vectors",
    "image": "duplicate images",
    "label": "tasks whose labels are useless for training",
    "class": "labels that may be a mistake (not a fault)",
    "split": "lists of splits",
    "unlisted": "files that belong to no split",
    "unread": "files of a type that is not read",
    "folder": "folders of tasks that do not exist",
    "stray": "folders that nothing reads (not a fault)",
    "manifest": "files that differ from the manifest",
    "link": "links out of the data set",
    "shown": "images that look different from their stored pixels (not a fault)",
}


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Attributes:
        kind: a key of `KINDS`.
        where: the file, id or task.
        what: a clause that says what is wrong.
    """

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    @property
    def is_fault(self) -> bool:
        """Return False for things that are allowed, but may be a mistake."""
        return self.kind not in ("shown", "class", "stray")

    @classmethod
    def of(cls, error: DataError, kind: str = "file", where: str = "") -> Problem:
        """Return the problem that an error describes; `where` is used if the message names no file."""
        place, colon, what = str(error).partition(": ")
        return cls(kind, place, what) if colon else cls(kind, where, place)


def check_dataset(
    dataset: LabelledImages,
    *,
    seen: dict[bytes | str, str] | None = None,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> list[Problem]:
    """Read every sample and return the problems; the data set is fine if no problem `is_fault`.

    Faults are damaged files, labels of another size than their image, values out of range, vectors in a label
    or its file that are not unit vectors, tasks without any label or with only one class, and duplicate
    images or ids. The result also lists classes that no label of the split "train" has, and images with an
    orientation tag or transparency, which are read as viewers show them. Only the id and the digest of a
    sample stay in memory.

    Args:
        dataset: the data set.
        seen: digests and ids of the images of other splits -> where they are. The images of this split are
            added, so the same dictionary can be passed for the next one. None: check only within this split.
        workers: processes that read; 0: use this process.
        progress: wraps the loop over the samples.
    """
    seen = {} if seen is None else seen
    problems: list[Problem] = []
    occurs = {name: Occurrence(task) for name, task in dataset.tasks.items()}
    indices = range(len(dataset))
    found = in_parallel(partial(_check_sample, dataset), indices, workers)
    for index, (wrong, digest, known) in zip(progress(indices), found):
        id, here = dataset.ids[index], f"{dataset.split}: {dataset.ids[index]}"
        problems += wrong
        for name, seen_here in known.items():
            occurs[name].merge(seen_here)
        if id in seen:
            problems.append(Problem("split", id, f"is in both {seen[id]} and {dataset.split}"))
        elif digest in seen:
            problems.append(Problem("image", id, f"duplicate of {seen[digest]}"))
        seen |= {id: dataset.split} | ({} if digest is None else {digest: here})
    for name, found_in in occurs.items():
        if fault := found_in.fault():
            # A small validation set may well show only one class, so that is not a fault.
            grave = dataset.split == "train" or found_in.is_empty
            problems.append(Problem("label" if grave else "class", name, fault))
        elif dataset.split == "train":
            problems += [Problem("class", name, note) for note in found_in.notes()]
    return problems


def _check_sample(
    data: LabelledImages, index: int
) -> tuple[list[Problem], bytes | None, dict[str, Occurrence]]:
    """Return problems, the hash of the image's pixels, and what occurs in the labels, by task."""
    sample, problems = _read(data, index, list(data.tasks))
    if sample is None:
        return problems, None, {}
    known: dict[str, Occurrence] = {}
    for name, label in sample.labels.items():
        task, where = data.tasks[name], f"{sample.id} ({name})"
        if wrong := examine(label, task, sample.size):
            problems.append(Problem("value", where, wrong))
            continue
        stored = None if task.label_names else data.stored(index, name)  # ids are stored as they are
        if stored is not None and (wrong := task.stored_problem(stored)):
            problems.append(Problem("vector", where, wrong))
        known[name] = Occurrence(task)
        unscaled = stored is not None and is_unscaled(stored, data.definition(name))
        known[name].add(label, data.label_file(index, name), unscaled=unscaled)
    problems += _shown_otherwise(data.image_file(index))
    try:
        data.boundaries(index)
    except DataError as error:
        problems.append(Problem.of(error, where=sample.id))
    return problems, blake2b(sample.image.contiguous().numpy().data, digest_size=16).digest(), known


def _shown_otherwise(path: AnyFile | None) -> list[Problem]:
    """Return why viewers show an image file differently from its stored pixels."""
    if path is None:
        return []
    problems, found = [], appearance(path)
    if found.orientation > 1:
        what = f"orientation tag {found.orientation} turns the image; labels must fit the turned image"
        problems.append(Problem("shown", str(path), what))
    if found.transparent:
        problems.append(Problem("shown", str(path), "has transparent pixels, which are shown on white"))
    return problems


def examine(label: Tensor, task: Task, image_size: tuple[int, int]) -> str | None:
    """Return what is wrong with a label for an image of (height, width); None if nothing is."""
    shape = (task.label_channels, *image_size)
    if tuple(label.shape) != shape or label.dtype != task.label_dtype:
        return f"{label.dtype} {list(label.shape)}, expected {task.label_dtype} {list(shape)}"
    return task.label_problem(label)


def summary(dataset: LabelledImages) -> dict:
    """Summarise a data set in values that can be written as JSON.

    The result has the name, the split, the number of images, and for each task its kind and its number of
    labels. `labels_per_image` counts the images with 0, 1, 2... labels.
    """
    exists = dataset.available()
    tasks = {
        name: {"kind": task.kind, "exist": int(exists.column(name).sum())}
        for name, task in dataset.tasks.items()
    }
    return {
        "name": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "tasks": tasks,
        "labels_per_image": exists.statistics()["labels_per_image"],
    }


def _read(dataset: LabelledImages, index: int, tasks: list[str]) -> tuple[Sample | None, list[Problem]]:
    """Read what can be read of a sample, and the problems of the rest; None if the image cannot be read."""
    try:
        return dataset.read(index, tasks), []
    except DataError:
        pass
    problems, sample = [], None
    try:
        sample = dataset.read(index, [])
    except DataError as error:
        return None, [Problem.of(error, where=dataset.ids[index])]
    for task in tasks:
        try:
            sample.labels.update(dataset.read(index, [task]).labels)
        except DataError as error:
            problems.append(Problem.of(error, where=dataset.ids[index]))
    return sample, problems
