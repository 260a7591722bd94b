"""Measure the labels of a data set: shares of classes and of unknown pixels, values, directions."""

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

DRAWN = 512  # evenly spread pixels of each label from which medians and histograms are estimated


@dataclass
class TaskStatistics:
    """Statistics of one task over the labels that were read.

    Attributes:
        labels: number of labels.
        pixels: number of their pixels.
        unknown: number of pixels without a known value.
        counts: int64 [n]: number of pixels of each class (binary: of 0 and 1).
        present: int64 [n]: number of labels that have a pixel of each class.
        values: float32, a sample of known pixels: [m] for numbers, [m, K] for vectors.
        low: smallest known number; NaN for vectors, or if no number is known.
        high: largest known number; likewise.
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
    """Statistics of the labels of a data set.

    Attributes:
        images: number of images that were read.
        sizes: (height, width) -> number of images.
        tasks: statistics by task.
        errors: a message for each image that could not be read.
    """

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
    """Measure the labels of a data set. Samples that cannot be read are left out and listed in `errors`.

    Args:
        dataset: the data set.
        indices: the samples to read; None: all.
        workers: processes that read; 0: use this process.
        progress: wraps the loop over the samples.
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
    """Return the size of an image and statistics of its labels, or the message of an error."""
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
