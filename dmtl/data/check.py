"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.partial_labels import LabelMatrix
from dmtl.errors import DataError
from dmtl.tasks import Task


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` is a file, an id or a task, `what` a sentence."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_dataset(
    dataset: LabelledImages,
    others: Sequence[LabelledImages] = (),
    *,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Problem]:
    """Reads everything and lists what is wrong; an empty list means that all is well.

    Damaged files, labels of another size, values out of range, vectors that are not unit vectors, tasks
    without any label or any positive, images that are there twice, in this split or in `others`.
    `progress` wraps the loop.
    """
    problems: list[Problem] = []
    seen: dict[bytes, str] = {}
    for other in others:
        for index in range(len(other)):
            sample, _ = _read(other, index, [])
            if sample is not None:
                seen[_digest(sample.image)] = f"{other.split}: {sample.id}"
    labelled, useful, positive = Counter(), Counter(), Counter()
    for index in progress(range(len(dataset))):
        sample, found = _read(dataset, index, list(dataset.tasks))
        problems += found
        if sample is None:
            continue
        digest = _digest(sample.image)
        if digest in seen:
            problems.append(Problem(sample.id, f"the same image as {seen[digest]}, expected it once"))
        seen.setdefault(digest, f"{dataset.split}: {sample.id}")
        for name, label in sample.labels.items():
            task = dataset.tasks[name]
            wrong = what_is_wrong(label, task, sample.size)
            if wrong is not None:
                problems.append(Problem(f"{sample.id} ({name})", wrong))
                continue
            labelled[name] += 1
            useful[name] += bool(task.valid(label).any())
            positive[name] += task.kind == "binary" and bool((label == 1).any())
    for name, task in dataset.tasks.items():
        if not labelled[name]:
            problems.append(Problem(name, "no readable label at all, expected at least one"))
        elif not useful[name]:
            problems.append(Problem(name, f"every pixel of its {labelled[name]} labels is ignored"))
        elif task.kind == "binary" and not positive[name]:
            problems.append(Problem(name, "no pixel is 1 in any label, expected 0 and 1 (255 means ignore)"))
    return problems


def what_is_wrong(label: Tensor, task: Task, image_size: tuple[int, int]) -> str | None:
    """Why `label` is not a label of `task` for an image of (height, width); None when it is one."""
    shape = (task.label_channels, *image_size)
    dtype = torch.uint8 if task.kind in ("classes", "binary") else torch.float32
    if tuple(label.shape) != shape or label.dtype != dtype:
        return f"{label.dtype} {list(label.shape)}, expected {dtype} {list(shape)}"
    if task.kind == "unit_vector":
        length = label.norm(dim=0, keepdim=True)[task.valid(label)]
        if len(length) and (length - 1).abs().max() > 1e-3:
            return f"vectors of length {length.min():.4f} to {length.max():.4f}, expected 1 within 0.001"
    elif dtype == torch.uint8:
        count = task.channels if task.kind == "classes" else 2
        counted = label[label != task.ignore]
        if len(counted) and counted.max() >= count:
            return f"value {int(counted.max())}, expected 0 to {count - 1}, or {task.ignore:g} (ignore)"
    return None


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
        return None, [_problem(dataset.ids[index], error)]
    for task in tasks:
        try:
            sample.labels.update(dataset.read(index, [task]).labels)
        except DataError as error:
            problems.append(_problem(dataset.ids[index], error))
    return sample, problems


def _problem(id: str, error: DataError) -> Problem:
    where, colon, what = str(error).partition(": ")
    return Problem(where, what) if colon else Problem(id, where)


def _digest(image: Tensor) -> bytes:
    return blake2b(image.numpy().tobytes(), digest_size=16).digest()
