"""Data sets made from other data sets: resized, cached in memory or on disk, or a subset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.transforms import check_size, resize, resize_thin
from dmtl.data.shards.member import Member
from dmtl.errors import DataError


class Wrapper(LabelledImages):
    """Base class of data sets that read the images and labels of another one, `dataset`, in their own way."""

    def __init__(self, dataset: LabelledImages):
        super().__init__(dataset.name, dataset.split, dataset.tasks, dataset.ids)
        self.dataset, self.evaluation = dataset, dataset.evaluation
        self.boundary_task, self.sources = dataset.boundary_task, dataset.sources

    def _at(self, index: int) -> int:
        """Return the position of image number `index` in `dataset`."""
        return index

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        return self.dataset.read(self._at(index), tasks)

    def available(self) -> LabelMatrix:
        return self._exists

    def image_file(self, index: int) -> Path | Member | None:
        return self.dataset.image_file(self._at(index))

    def label_file(self, index: int, task: str) -> Path | Member | None:
        return self.dataset.label_file(self._at(index), task)

    def shard_numbers(self) -> np.ndarray | None:
        return self.dataset.shard_numbers()

    def stored(self, index: int, task: str) -> np.ndarray | None:
        return self.dataset.stored(self._at(index), task)

    def boundaries(self, index: int) -> Tensor | None:
        return self.dataset.boundaries(self._at(index))

    def identity(self, task: str | None = None) -> list:
        return self.dataset.identity(task)

    def definition(self, task: str) -> dict:
        return self.dataset.definition(task)

    def unread(self, task: str) -> list[str]:
        return self.dataset.unread(task)

    def missing(self, task: str) -> list[str]:
        return self.dataset.missing(task)

    @cached_property
    def _exists(self) -> LabelMatrix:
        return self.dataset.available()


class Resized(Wrapper):
    """Resize all images and labels of `dataset` to `size` = (height, width).

    `Cached(Resized(dataset, size))` decodes each file only once.
    """

    def __init__(self, dataset: LabelledImages, size: tuple[int, int]):
        super().__init__(dataset)
        self.size = check_size("Resized", size)

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        return resize(self.dataset.read(index, tasks), self.size, self.tasks)

    def image_file(self, index: int) -> None:
        return None  # files have the original size

    def stored(self, index: int, task: str) -> None:
        return None

    def boundaries(self, index: int) -> Tensor | None:
        found = self.dataset.boundaries(index)
        return None if found is None else resize_thin(found[None], self.size)[0]

    def identity(self, task: str | None = None) -> list:
        return ["Resized", list(self.size), self.dataset.identity(task)]


class Cached(Wrapper):
    """Cache samples in memory as they were read, up to `limit_bytes`; other samples are read each time.

    Only requested labels are read and cached. Forked processes share the cache as it is at the fork, so a
    loader with workers calls `warm` first. A pickled copy starts with an empty cache.
    """

    def __init__(self, dataset: LabelledImages, limit_bytes: int = 4 << 30):
        super().__init__(dataset)
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._kept: dict[int, Sample] = {}

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        tasks = self.wanted(tasks)
        sample = self._complete(index, tasks)
        self._keep(index, sample)
        return replace(sample, labels={task: sample.labels[task] for task in tasks if task in sample.labels})

    def warm(
        self, labels: LabelMatrix | None = None, indices: Iterable[int] | None = None, threads: int = 1
    ) -> Cached:
        """Read samples into the cache now, up to the limit, and return this data set.

        An unreadable sample is skipped here; reading it later raises its DataError.

        Args:
            labels: cache only the labels that it shows; None: all that exist.
            indices: the samples to read; None: all.
            threads: number of threads that read.
        """
        table = self._exists if labels is None else labels

        def fetch(index: int) -> Sample | None:
            try:
                return self._complete(index, [t for t in table.tasks_of(self.ids[index]) if t in self.tasks])
            except DataError:
                return None

        indices = list(range(len(self)) if indices is None else indices)
        with ThreadPoolExecutor(threads) as pool:
            fetched = pool.map(fetch, indices) if threads > 1 else (fetch(index) for index in indices)
            # `map` is a generator, typed as an iterator
            with closing(fetched):  # type: ignore[type-var]  # drop pending reads, also on Ctrl-C
                for index, sample in zip(indices, fetched):
                    if sample is not None and not self._keep(index, sample):
                        break
        return self

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}, "used_bytes": 0}

    def _complete(self, index: int, tasks: list[str]) -> Sample:
        """Return the sample with at least the existing labels of `tasks`, reading only what is not cached."""
        kept = self._kept.get(index)
        unread = [task for task in tasks if kept is None or task not in kept.labels]
        if kept is not None and not set(unread) & set(self._exists.tasks_of(self.ids[index])):
            return kept
        fresh = self.dataset.read(index, unread)
        return fresh if kept is None else replace(kept, labels={**kept.labels, **fresh.labels})

    def _keep(self, index: int, sample: Sample) -> bool:
        """Cache a sample and return whether there was room."""
        before = self._kept.get(index)
        growth = _bytes(sample) - (0 if before is None else _bytes(before))
        if self.used_bytes + growth > self.limit_bytes:
            return False
        self._kept[index] = sample
        self.used_bytes += growth
        return True


class Subset(Wrapper):
    """Use only the images at `indices` of `dataset`, in that order."""

    def __init__(self, dataset: LabelledImages, indices: Sequence[int]):
        super().__init__(dataset)
        self.indices = list(indices)
        self.ids = [dataset.ids[i] for i in self.indices]

    def _at(self, index: int) -> int:
        return self.indices[index]

    def available(self) -> LabelMatrix:
        return self.dataset.available().subset(ids=self.ids)

    def shard_numbers(self) -> np.ndarray | None:
        numbers = self.dataset.shard_numbers()
        return None if numbers is None else numbers[self.indices]

    def identity(self, task: str | None = None) -> list:
        return ["Subset", self.indices, self.dataset.identity(task)]


def _bytes(sample: Sample) -> int:
    return sum(t.numel() * t.element_size() for t in (sample.image, *sample.labels.values()))
