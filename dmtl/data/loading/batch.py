"""A batch of samples, and collation of samples into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import itemgetter

import torch
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.loading.transforms import PadTo
from dmtl.errors import DataError
from dmtl.tasks import Task


@dataclass
class Batch:
    """B samples padded to one size: the samples of a whole step, or one process's share of them.

    Attributes:
        ids: names of the images.
        index: int64 [B], indices of the samples in the data set (the `sample` of counter-based noise).
        image: float32 [B, 3, H, W], ImageNet-normalised.
        labels: task -> [B, K, H, W]; all `ignore` if a sample has no label of the task.
        present: task -> bool [B]: whether a sample has a label. Always on the CPU, so that selecting rows
            never waits for a device.
        valid_size: (h, w) of each image without its padding.
        valid_at: (top, left) of each image inside its padding; default: (0, 0).
        sizes: (h, w) of each sample before padding to the largest of the batch; default: that of `image`.
        sources: names of the sources, if the data set joins several (`dmtl.data.sources`).
        epoch: number of the epoch.
        position: number of this batch in its epoch.
        total: number of images in the step over all processes, including skipped ones; default: B.
        labelled: task -> number of labelled images in the step over all processes; default: those of this
            batch.
        skipped: an error message for each sample that was skipped because it cannot be read.
    """

    ids: list[str]
    index: Tensor
    image: Tensor
    labels: dict[str, Tensor]
    present: dict[str, Tensor]
    valid_size: list[tuple[int, int]]
    epoch: int = 0
    position: int = 0
    total: int = 0
    labelled: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    valid_at: list[tuple[int, int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.total = self.total or len(self.ids)
        self.valid_at = self.valid_at or [(0, 0)] * len(self.ids)
        self.sizes = self.sizes or [(self.image.shape[-2], self.image.shape[-1])] * len(self.ids)
        self.labelled = self.labelled or {name: int(on.sum()) for name, on in self.present.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move image, labels and index to `device`; `present` stays on the CPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory, for transfers that overlap with computation."""
        return self._each(Tensor.pin_memory)

    def split(self, size: int) -> list[Batch]:
        """Split the rows in order into parts of at most `size`, without a copy.

        `total` and `labelled` remain those of the step; `skipped` goes to the first part.
        """
        if size < 1:
            raise ValueError(f"Batch.split: size must be at least 1, got {size}")
        parts = []
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            part = self._each(itemgetter(rows))
            part.ids, part.valid_size = self.ids[rows], self.valid_size[rows]
            part.valid_at, part.sizes = self.valid_at[rows], self.sizes[rows]
            part.present = {name: on[rows] for name, on in self.present.items()}
            part.skipped = [] if start else self.skipped
            parts.append(part)
        return parts

    def unpadded(self, row: int) -> tuple[slice, slice]:
        """Return the (row, column) slices of an image inside its padding: `map[i][...,
        *batch.unpadded(i)]`."""
        (top, left), (height, width) = self.valid_at[row], self.valid_size[row]
        return slice(top, top + height), slice(left, left + width)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        labels = {name: move(label) for name, label in self.labels.items()}
        return replace(self, image=move(self.image), labels=labels, index=move(self.index))


class Collate:
    """Collate the samples that could be read into a batch (None if there are none).

    Also returns the errors of the other samples, with their indices in the data set.
    """

    def __init__(self, dataset: LabelledImages, tasks: list[str]):
        self.tasks = {name: dataset.tasks[name] for name in tasks}
        self.sources = tuple(dataset.sources)

    def __call__(
        self, items: list[tuple[tuple[int, int, int, int], Sample | DataError | OSError]]
    ) -> tuple[Batch | None, list[tuple[int, DataError | OSError]]]:
        errors = [(key[2], item) for key, item in items if isinstance(item, Exception)]
        read = [(key, item) for key, item in items if not isinstance(item, Exception)]
        if not read:
            return None, errors
        keys = [key for key, _ in read]
        pad = PadTo((max(s.size[0] for _, s in read), max(s.size[1] for _, s in read)))
        samples = [pad(s, self.tasks) for _, s in read]
        present = {name: torch.tensor([name in s.labels for s in samples]) for name in self.tasks}
        labels = {
            name: torch.stack(
                [s.labels[name] if name in s.labels else _ignored(task, *s.size) for s in samples]
            )
            for name, task in self.tasks.items()
        }
        batch = Batch(
            ids=[s.id for s in samples],
            index=torch.tensor([key[2] for key in keys]),
            image=torch.stack([s.image for s in samples]),
            labels=labels,
            present=present,
            valid_size=[s.valid_size or s.size for s in samples],
            epoch=keys[0][0],
            position=keys[0][1],
            valid_at=[s.valid_at for s in samples],
            sizes=[s.size for _, s in read],
            sources=self.sources,
        )
        return batch, errors


def _ignored(task: Task, height: int, width: int) -> Tensor:
    """Return a label [K, H, W] in which every pixel is ignored."""
    return torch.full((task.label_channels, height, width), task.ignore, dtype=task.label_dtype)
