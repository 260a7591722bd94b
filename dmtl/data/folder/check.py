"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.images import appearance
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.labels.occurrence import Occurrence, is_unscaled
from dmtl.data.parallel import in_parallel
from dmtl.data.shards.member import AnyFile
from dmtl.errors import DataError
from dmtl.tasks import Task

KINDS = {
    "file": "files that cannot be read as what they are",
    "value": "labels with values that mean nothing",
    "vector": "vectors in files that are not unit vectors",
    "image": "images that are there twice",
    "label": "tasks whose labels teach nothing",
    "class": "labels that may be meant otherwise (no fault)",
    "split": "lists of splits",
    "unlisted": "files of no split",
    "unread": "files of a type that is not read",
    "manifest": "files that are not as the manifest says",
    "link": "links out of the data set",
    "shown": "images that are shown otherwise than stored (no fault)",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its kind (of `KINDS`), `where` a file, an id or a task, `what` a sentence."""

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    @property
    def is_fault(self) -> bool:
        """False for what is legal, but good to know."""
        return self.kind not in ("shown", "class")

    @classmethod
    def of(cls, error: DataError, kind: str = "file", where: str = "") -> Problem:
        """Return what an error says; `where` is used if it names no place itself."""
        place, colon, what = str(error).partition(": ")
        return cls(kind, place, what) if colon else cls(kind, where, place)


def check_dataset(
    dataset: LabelledImages,
    *,
    seen: dict[bytes | str, str] | None = None,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> list[Problem]:
    """Reads everything and lists what is wrong; all is well if no problem `is_fault`.

    Damaged files, labels of another size, values out of range, vectors that are not unit vectors (in the
    label, and in its file before reading makes them so), tasks without any label, or with one class alone,
    images and ids that are there twice. Also lists classes that no label of the split "train" has, and images
    with an orientation tag or transparency, which are read as viewers show them. Nothing of a sample is kept
    but its id and digest.

    Args:
        seen: what is known of other splits, filled for the next call: content and ids of images -> where.
        workers: processes that read; 0: this one.
        progress: wraps the loop.
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
            problems.append(Problem("split", id, f"is in {seen[id]} and {dataset.split}, expected one split"))
        elif digest in seen:
            twice = f"the same image as {seen[digest]}, expected it once"
            problems.append(Problem("image", id, twice))
        seen |= {id: dataset.split} | ({} if digest is None else {digest: here})
    for name, found_in in occurs.items():
        if fault := found_in.fault():
            # a few images to validate on may well show one class
            grave = dataset.split == "train" or found_in.is_empty
            problems.append(Problem("label" if grave else "class", name, fault))
        elif dataset.split == "train":
            problems += [Problem("class", name, note) for note in found_in.notes()]
    return problems


def _check_sample(
    data: LabelledImages, index: int
) -> tuple[list[Problem], bytes | None, dict[str, Occurrence]]:
    """Problems, the hash of the image's pixels, and what occurs in its labels, by task."""
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
        known[name].add(label, unscaled=stored is not None and is_unscaled(stored, data.definition(name)))
    problems += _shown_otherwise(data.image_file(index))
    try:
        data.boundaries(index)
    except DataError as error:
        problems.append(Problem.of(error, where=sample.id))
    return problems, blake2b(sample.image.contiguous().numpy().data, digest_size=16).digest(), known


def _shown_otherwise(path: AnyFile | None) -> list[Problem]:
    """Why an image file looks different from its stored pixels."""
    if path is None:
        return []
    problems, found = [], appearance(path)
    if found.orientation > 1:
        what = f"orientation tag {found.orientation} turns it, labels are expected to fit the turned image"
        problems.append(Problem("shown", str(path), what))
    if found.transparent:
        problems.append(Problem("shown", str(path), "has transparency, which is shown on white"))
    return problems


def examine(label: Tensor, task: Task, image_size: tuple[int, int]) -> str | None:
    """Return what is wrong with a label for an image of (height, width); None if nothing is."""
    shape = (task.label_channels, *image_size)
    if tuple(label.shape) != shape or label.dtype != task.label_dtype:
        return f"{label.dtype} {list(label.shape)}, expected {task.label_dtype} {list(shape)}"
    return task.label_problem(label)


def summary(dataset: LabelledImages, labels: LabelMatrix | None = None) -> dict:
    """JSON-able facts: name, split, number of images, per task its kind and its existing and visible labels.

    `labels_per_image` says how many images have 0, 1, 2... visible labels.
    """
    exists = dataset.available()
    visible = exists if labels is None else exists.intersect(labels.subset(dataset.ids, list(dataset.tasks)))
    tasks = {
        name: {
            "kind": task.kind,
            "exist": int(exists.column(name).sum()),
            "visible": int(visible.column(name).sum()),
        }
        for name, task in dataset.tasks.items()
    }
    return {
        "name": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "tasks": tasks,
        "labels_per_image": visible.statistics()["labels_per_image"],
    }


def picture_row(sample: Sample, tasks: dict[str, Task]) -> np.ndarray:
    """The image and its label pictures side by side, uint8 [H, n W, 3]; mid-grey without a label."""
    height, width = sample.size
    blank = np.full((height, width, 3), 128, np.uint8)
    pictures = [
        task.label_picture(sample.labels[name]) if name in sample.labels else blank
        for name, task in tasks.items()
    ]
    return np.concatenate([sample.image.permute(1, 2, 0).numpy(), *pictures], axis=1)


def _read(dataset: LabelledImages, index: int, tasks: list[str]) -> tuple[Sample | None, list[Problem]]:
    """The sample as far as it can be read: one damaged label does not hide the others."""
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
