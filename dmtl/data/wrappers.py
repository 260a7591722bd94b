"""Data sets made from other data sets: smaller images, kept in memory, fewer of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.partial_labels import LabelMatrix
from dmtl.data.transforms import check_size, resize


class Resized(LabelledImages):
    """`dataset` at one size, (height, width). `Cached(Resized(dataset, size))` decodes each file once."""

    def __init__(self, dataset: LabelledImages, size: tuple[int, int]):
        super().__init__(dataset.name, dataset.split, dataset.tasks, dataset.ids)
        self.dataset, self.size = dataset, check_size("Resized", size)

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        return resize(self.dataset.read(index, tasks), self.size, self.tasks)

    def available(self) -> LabelMatrix:
        return self.dataset.available()


class Cached(LabelledImages):
    """Keeps what was read in memory (as uint8) until `limit_bytes` are used; the rest is read each time.

    Only labels that were asked for are ever read or kept. Each loader worker keeps its own; with workers,
    call `warm` first, so that they share the parent's copy where processes are forked.
    """

    def __init__(self, dataset: LabelledImages, limit_bytes: int = 4 << 30):
        super().__init__(dataset.name, dataset.split, dataset.tasks, dataset.ids)
        self.dataset, self.limit_bytes, self.used_bytes = dataset, limit_bytes, 0
        self._kept: dict[int, Sample] = {}

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        tasks = self.wanted(tasks)
        kept = self._kept.get(index)
        unread = [task for task in tasks if kept is None or task not in kept.labels]
        if kept is None or set(unread) & set(self._exists.tasks_of(self.ids[index])):
            fresh = self.dataset.read(index, unread)
            kept = fresh if kept is None else replace(kept, labels={**kept.labels, **fresh.labels})
            self._keep(index, kept)
        return replace(kept, labels={task: kept.labels[task] for task in tasks if task in kept.labels})

    def available(self) -> LabelMatrix:
        return self._exists

    def warm(self, labels: LabelMatrix | None = None) -> Cached:
        """Reads everything now (with `labels`, only what they show)."""
        for index, id in enumerate(self.ids):
            self.read(index, None if labels is None else [t for t in labels.tasks_of(id) if t in self.tasks])
        return self

    @cached_property
    def _exists(self) -> LabelMatrix:
        return self.dataset.available()

    def _keep(self, index: int, sample: Sample) -> None:
        before = self._kept.get(index)
        growth = _bytes(sample) - (0 if before is None else _bytes(before))
        if self.used_bytes + growth <= self.limit_bytes:
            self._kept[index] = sample
            self.used_bytes += growth


class Subset(LabelledImages):
    """The images at `indices` of `dataset`, in that order."""

    def __init__(self, dataset: LabelledImages, indices: Sequence[int]):
        super().__init__(dataset.name, dataset.split, dataset.tasks, [dataset.ids[i] for i in indices])
        self.dataset, self.indices = dataset, list(indices)

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        return self.dataset.read(self.indices[index], tasks)

    def available(self) -> LabelMatrix:
        return self.dataset.available().subset(ids=self.ids)


def _bytes(sample: Sample) -> int:
    return sum(t.numel() * t.element_size() for t in (sample.image, *sample.labels.values()))
