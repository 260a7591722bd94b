"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.folder.label_maps import lengths
from dmtl.data.images import has_transparency, orientation_of
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.parallel import in_parallel
from dmtl.errors import DataError
from dmtl.tasks import Task

KINDS = {
    "file": "files that cannot be read as what they are",
    "value": "labels with values that mean nothing",
    "vector": "vectors in files that are not unit vectors",
    "image": "images that are there twice",
    "label": "tasks whose labels teach nothing",
    "split": "lists of splits",
    "unlisted": "files of no split",
    "manifest": "files that are not as the manifest says",
    "link": "links out of the data set",
    "shown": "images that are shown otherwise than stored (no fault)",
}
_DECODED = np.arange(256, dtype=np.uint8) * np.float32(2 / 255) - 1
_UNKNOWN_GREY = np.isin(np.arange(256), (0, 127, 128, 255))
_TOLERANCE = {"f": 1e-3, "u": 0.01}  # of lengths: numbers; three codes rounded to 8 bits


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
        return self.kind != "shown"

    @classmethod
    def of(cls, error: DataError, kind: str = "file", where: str = "") -> Problem:
        """What an error says; `where` for one that begins with no place of its own."""
        place, colon, what = str(error).partition(": ")
        return cls(kind, place, what) if colon else cls(kind, where, place)


def check_dataset(
    dataset: LabelledImages,
    *,
    seen: dict[bytes | str, str] | None = None,
    workers: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Problem]:
    """Reads everything and lists what is wrong; all is well if no problem `is_fault`.

    Damaged files, labels of another size, values out of range, vectors that are not unit vectors (in the
    label, and in its file before reading makes them so), tasks without any label or any positive, images and
    ids that are there twice. Also lists images with an orientation tag or transparency, which are read as
    viewers show them. Nothing of a sample is kept but its id and digest.

    Args:
        seen: what is known of other splits, filled for the next call: content and ids of images -> where.
        workers: processes that read; 0: this one.
        progress: wraps the loop.
    """
    seen = {} if seen is None else seen
    problems: list[Problem] = []
    count = Counter()
    indices = range(len(dataset))
    for index, found in zip(progress(indices), in_parallel(_Reader(dataset), indices, workers)):
        id, here = dataset.ids[index], f"{dataset.split}: {dataset.ids[index]}"
        problems += found.problems
        count.update(found.facts)
        if id in seen:
            problems.append(Problem("split", id, f"is in {seen[id]} and {dataset.split}, expected one split"))
        elif found.digest in seen:
            twice = f"the same image as {seen[found.digest]}, expected it once"
            problems.append(Problem("image", id, twice))
        seen |= {id: dataset.split} | ({} if found.digest is None else {found.digest: here})
    for name, task in dataset.tasks.items():
        labels = count["labelled", name]
        if not labels:
            problems.append(Problem("label", name, "no readable label at all, expected at least one"))
        elif not count["useful", name]:
            problems.append(Problem("label", name, f"every pixel of its {labels} labels is ignored"))
        elif task.kind == "binary" and not count["positive", name]:
            message = "no pixel is 1 in any label, expected 0 and 1 (255 means ignore)"
            problems.append(Problem("label", name, message))
    return problems


@dataclass
class _Found:
    """Of one sample: problems, the hash of its pixels, ("labelled" | "useful" | "positive", task)."""

    problems: list[Problem]
    digest: bytes | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)


class _Reader:
    def __init__(self, dataset: LabelledImages):
        self.dataset = dataset

    def __call__(self, index: int) -> _Found:
        data = self.dataset
        sample, problems = _read(data, index, list(data.tasks))
        found = _Found(problems)
        if sample is None:
            return found
        for name, label in sample.labels.items():
            task, where = data.tasks[name], f"{sample.id} ({name})"
            wrong, facts = _examined(label, task, sample.size)
            if wrong:
                problems.append(Problem("value", where, wrong))
                continue
            if task.kind == "unit_vector" and (wrong := wrong_lengths(data.stored(index, name))):
                problems.append(Problem("vector", where, wrong))
            found.facts += [(fact, name) for fact in facts]
        problems += _shown_otherwise(data.image_file(index))
        try:
            data.boundaries(index)
        except DataError as error:
            problems.append(Problem.of(error, where=sample.id))
        found.digest = blake2b(sample.image.contiguous().numpy(), digest_size=16).digest()
        return found


def _shown_otherwise(path: Path | None) -> list[Problem]:
    """Why an image file looks different from its stored pixels."""
    if path is None:
        return []
    problems = []
    if (tag := orientation_of(path)) > 1:
        what = f"orientation tag {tag} turns it, labels are expected to fit the turned image"
        problems.append(Problem("shown", str(path), what))
    if has_transparency(path):
        problems.append(Problem("shown", str(path), "has transparency, which is shown on white"))
    return problems


def wrong_lengths(stored: np.ndarray | None) -> str | None:
    """What is wrong with the lengths of a file's vectors [H, W, 3], which reading makes 1; None: nothing.

    Unknown are zeros and what is not finite, in codes (uint8) also black, mid-grey and white.
    """
    if stored is None:
        return None
    tolerance = _TOLERANCE[stored.dtype.kind]
    x, y, z = stored.transpose(2, 0, 1)
    if stored.dtype.kind == "u":
        known = (x != y) | (x != z) | ~_UNKNOWN_GREY[x]
        x, y, z = (_DECODED[code] for code in (x, y, z))
    else:
        x, y, z = (values.astype(np.float32) for values in (x, y, z))
        known = np.isfinite(x) & np.isfinite(y) & np.isfinite(z) & ((x != 0) | (y != 0) | (z != 0))
    length = lengths(x, y, z)[known]
    wrong = np.abs(length - 1) > tolerance
    if not wrong.any():
        return None
    worst = length[np.abs(length - 1).argmax()]
    return (
        f"{wrong.mean():.2%} of its {len(length)} vectors have another length, the worst {worst:.4f}, "
        f"expected 1 within {tolerance:g}"
    )


def what_is_wrong(label: Tensor, task: Task, image_size: tuple[int, int]) -> str | None:
    """Why `label` is not a label of `task` for an image of (height, width); None when it is one."""
    return _examined(label, task, image_size)[0]


def _examined(label: Tensor, task: Task, image_size: tuple[int, int]) -> tuple[str | None, list[str]]:
    """What is wrong with a label; if nothing, the facts about it."""
    shape = (task.label_channels, *image_size)
    dtype = torch.uint8 if task.kind in ("classes", "binary") else torch.float32
    if tuple(label.shape) != shape or label.dtype != dtype:
        return f"{label.dtype} {list(label.shape)}, expected {dtype} {list(shape)}", []
    if dtype == torch.uint8:  # which values there are says all, and counting them is quick
        label = torch.from_numpy(np.flatnonzero(np.bincount(label.numpy().ravel())).astype(np.uint8))
        count = task.channels if task.kind == "classes" else 2
        if len(wrong := label[(label >= count) & (label != task.ignore)]):
            return f"value {int(wrong.max())}, expected 0 to {count - 1}, or {task.ignore:g} (ignore)", []
        label = label[None, None]
    valid = task.valid(label)
    if task.kind == "unit_vector":
        length = lengths(*label.numpy())[valid[0].numpy()]
        if len(length) and np.abs(length - 1).max() > 1e-3:
            return f"vectors of length {length.min():.4f} to {length.max():.4f}, expected 1 within 0.001", []
    facts = ["labelled"]
    if valid.any():
        facts.append("useful")
    if task.kind == "binary" and (label == 1).any():
        facts.append("positive")
    return None, facts


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
    """The image and its label pictures side by side, uint8 [H, n W, 3]; mid-grey where there is no label."""
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
