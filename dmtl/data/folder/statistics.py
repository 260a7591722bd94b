"""What the labels of a data set hold: shares of classes and of unknown pixels, values, directions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dmtl.data.base import LabelledImages
from dmtl.data.parallel import in_parallel
from dmtl.errors import DataError
from dmtl.tasks import Task

DRAWN = 512  # pixels of a label, evenly spread, whose values stand for all in medians and histograms


@dataclass
class TaskStatistics:
    """One task over the labels that were read.

    labels      how many; `pixels` theirs, `unknown` those without meaning
    counts      int64 [n]: pixels by class, or of 0 and 1
    present     int64 [n]: labels with such a pixel
    values      float32 [m] drawn from known pixels of numbers, [m, K] of vectors
    low, high   least and greatest known number; NaN for vectors, and without one
    """

    task: Task
    labels: int = 0
    pixels: int = 0
    unknown: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    present: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    low: float = float("nan")
    high: float = float("nan")

    @property
    def known(self) -> int:
        return self.pixels - self.unknown


@dataclass
class Statistics:
    """`images` were read, of these (height, width); `errors` are messages of those that could not be."""

    images: int
    sizes: Counter[tuple[int, int]]
    tasks: dict[str, TaskStatistics]
    errors: list[str]


def measure(
    dataset: LabelledImages,
    indices: Sequence[int] | None = None,
    *,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Statistics:
    """Statistics of the labels at `indices` (None: of all). What cannot be read is left out and reported.

    workers: processes that read; 0: this one. progress: wraps the loop.
    """
    indices = list(range(len(dataset)) if indices is None else indices)
    found: dict[str, list[TaskStatistics]] = {name: [] for name in dataset.tasks}
    errors: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    for _, result in zip(progress(indices), in_parallel(partial(_of_sample, dataset), indices, workers)):
        if isinstance(result, str):
            errors.append(result)
            continue
        size, parts = result
        sizes[size] += 1
        for name, part in parts.items():
            found[name].append(part)
    tasks = {name: _merged(dataset.tasks[name], parts) for name, parts in found.items()}
    return Statistics(sizes.total(), sizes, tasks, errors)


def _of_sample(
    dataset: LabelledImages, index: int
) -> tuple[tuple[int, int], dict[str, TaskStatistics]] | str:
    """Size of the image and statistics of its labels, or the message of an error."""
    try:
        sample = dataset.read(index)
    except DataError as error:
        return str(error)
    return sample.size, {name: _of_label(dataset.tasks[name], label) for name, label in sample.labels.items()}


def _of_label(task: Task, label_KHW: Tensor) -> TaskStatistics:
    known_HW = task.valid(label_KHW)[0]
    known_NK = label_KHW[:, known_HW].T
    result = TaskStatistics(task, 1, known_HW.numel(), int((~known_HW).sum()))
    if size := len(task.label_names):
        result.counts = torch.bincount(known_NK[:, 0].long(), minlength=size)[:size].numpy()
        result.present = (result.counts > 0).astype(np.int64)
        return result
    drawn = known_NK[:: max(1, len(known_NK) // DRAWN)][:DRAWN].numpy()
    result.values = drawn[:, 0] if task.label_channels == 1 else drawn
    if task.label_channels == 1 and len(known_NK):
        result.low, result.high = float(known_NK.min()), float(known_NK.max())
    return result


def _merged(task: Task, parts: Sequence[TaskStatistics]) -> TaskStatistics:
    if not parts:
        return TaskStatistics(task)
    return TaskStatistics(
        task,
        labels=len(parts),
        pixels=sum(part.pixels for part in parts),
        unknown=sum(part.unknown for part in parts),
        counts=np.sum([part.counts for part in parts], 0),
        present=np.sum([part.present for part in parts], 0),
        values=np.concatenate([part.values for part in parts]),
        low=float(np.fmin.reduce([part.low for part in parts])),
        high=float(np.fmax.reduce([part.high for part in parts])),
    )
