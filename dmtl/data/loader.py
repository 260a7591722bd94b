"""Batches that are a function of (seed, epoch, position) alone.

The order of an epoch depends on (seed, epoch), the augmentation of an image on (seed, epoch, index): the
same batches come out with any number of worker processes, and a run can go on at any position. No global
random state is read or moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dmtl.data.base import LabelledImages, Sample, stack_images, stack_labels
from dmtl.data.partial_labels import LabelMatrix
from dmtl.data.transforms import PadTo, Transform, eval_transform
from dmtl.errors import DataError


@dataclass
class Batch:
    """B samples of one size.

    ids         names of the images
    index       int64 [B], their places in the data set (the `sample` of counter-based noise)
    image       float32 [B, 3, H, W], ImageNet-normalised
    labels      task -> [B, K, H, W]; all `ignore` where a sample has no label of the task
    present     task -> bool [B], on the CPU always, so that choosing rows never waits for a device
    valid_size  (h, w) of each image without its padding, which lies below and to the right
    epoch, position   where this batch stands: number `position` of epoch `epoch`
    """

    ids: list[str]
    index: Tensor
    image: Tensor
    labels: dict[str, Tensor]
    present: dict[str, Tensor]
    valid_size: list[tuple[int, int]]
    epoch: int = 0
    position: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with image, labels and index on `device`; `present` stays where it is."""
        labels = {name: label.to(device, non_blocking=non_blocking) for name, label in self.labels.items()}
        return replace(
            self,
            image=self.image.to(device, non_blocking=non_blocking),
            labels=labels,
            index=self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for copies that overlap with computation."""
        labels = {name: label.pin_memory() for name, label in self.labels.items()}
        return replace(self, image=self.image.pin_memory(), labels=labels, index=self.index.pin_memory())


class Loader:
    """Iterates batches; made by `make_loader`.

    `iter(loader)` gives the epoch `epoch` from `start` on, `loader.stream(step)` goes on for ever.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        visible: LabelMatrix,
        rows: np.ndarray,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        workers: int,
        pin: bool,
        epoch: int,
        start: int,
    ):
        self.dataset, self.visible, self.transform = dataset, visible, transform
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.workers, self.pin, self.epoch, self.start = workers, pin, epoch, start
        self._rows = rows

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        full, rest = divmod(len(self._rows), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self._run((self.epoch, position) for position in range(self.start, len(self)))

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """Endless batches from global number `step` on, epoch after epoch, without a pause between them."""

        def places() -> Iterator[tuple[int, int]]:
            at = step
            while True:
                yield divmod(at, len(self))
                at += 1

        return self._run(places())

    def order(self, epoch: int) -> np.ndarray:
        """The data set's indices in the order of `epoch`."""
        return (
            np.random.default_rng([self.seed, epoch]).permutation(self._rows) if self.shuffle else self._rows
        )

    def _run(self, places: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        loader = DataLoader(
            _Prepared(self.dataset, self.visible, self.transform, self.seed),
            batch_sampler=_Places(self, places),
            collate_fn=_Collate(self.dataset, self.visible.tasks),
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator().manual_seed(0),  # else DataLoader draws from torch's global generator
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def make_loader(
    dataset: LabelledImages,
    labels: LabelMatrix | None = None,
    transform: Transform | None = None,
    *,
    batch_size: int = 8,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool | None = None,
    only_labelled: bool | None = None,
    tasks: Sequence[str] | None = None,
    workers: int = 0,
    pin: bool = False,
    epoch: int = 0,
    start: int = 0,
) -> Loader:
    """Batches of `dataset`, with the labels that `labels` shows and that exist (None: all that exist).

    Args:
        labels: matched with the data set by id and task name; what it hides is never read.
        transform: e.g. `train_transform(size)`; None normalises only. Different sizes in a batch are padded.
        shuffle: a new order for each epoch (training); False keeps that of the data set (evaluation).
        drop_last: leave out an incomplete last batch; by default when shuffling.
        only_labelled: leave out images without any visible label; by default when shuffling.
        tasks: the tasks whose labels are wanted; by default those of `labels` that the data set has, or all.
        workers: processes that read and transform; 0 does it here.
        pin: page-locked memory, for a GPU.
        epoch, start: `iter(loader)` gives the batches of this epoch from this position on.

    Errors: DataError for a task that the data set lacks, an image without a row in `labels`, nothing left.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
        ("start", start, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"make_loader: {name} must be an integer of at least {least}, got {value!r}")
    if tasks is None and labels is not None:
        tasks = [task for task in dataset.tasks if task in labels.tasks]
    visible = dataset.available().subset(tasks=dataset.wanted(tasks))
    if labels is not None:
        visible = visible.intersect(labels)
    keep = (
        visible.matrix.any(1)
        if (shuffle if only_labelled is None else only_labelled)
        else np.ones(len(dataset), bool)
    )
    rows = np.flatnonzero(keep)
    if len(rows) == 0:
        raise DataError(
            f"{dataset.name}: split {dataset.split!r} has no image with a visible label of "
            f"{', '.join(visible.tasks) or 'any task'}"
        )
    drop_last = shuffle if drop_last is None else drop_last
    if drop_last and len(rows) < batch_size:
        raise DataError(
            f"{dataset.name}: split {dataset.split!r} has {len(rows)} labelled images, "
            f"expected at least batch_size = {batch_size}"
        )
    return Loader(
        dataset,
        visible,
        rows,
        transform or eval_transform(),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        workers=workers,
        pin=pin,
        epoch=epoch,
        start=start,
    )


class _Places:
    """Turns places (epoch, position) into the keys (epoch, position, index) that a worker needs."""

    def __init__(self, loader: Loader, places: Iterator[tuple[int, int]]):
        self.loader, self.places = loader, places

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        size, order_of = self.loader.batch_size, (-1, None)
        for epoch, position in self.places:
            if order_of[0] != epoch:
                order_of = epoch, self.loader.order(epoch)
            chosen = order_of[1][position * size : (position + 1) * size]
            yield [(epoch, position, int(index)) for index in chosen]


class _Prepared:
    """Reads and transforms one sample. An error comes back as a value, and so arrives as it was raised."""

    def __init__(self, dataset: LabelledImages, visible: LabelMatrix, transform: Transform, seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.shown = [[task for task, on in zip(visible.tasks, row) if on] for row in visible.matrix]

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[tuple[int, int, int], Sample] | DataError:
        epoch, _, index = key
        try:
            sample = self.dataset.read(index, self.shown[index])
        except DataError as error:
            return error
        return key, self.transform(
            sample, self.dataset.tasks, np.random.default_rng([self.seed, epoch, index])
        )


class _Collate:
    def __init__(self, dataset: LabelledImages, tasks: list[str]):
        self.tasks = {name: dataset.tasks[name] for name in tasks}

    def __call__(self, items: list) -> Batch | DataError:
        for item in items:
            if isinstance(item, DataError):
                return item
        keys, samples = zip(*items)
        pad = PadTo((max(s.size[0] for s in samples), max(s.size[1] for s in samples)))
        samples = [pad(s, self.tasks) for s in samples]
        labels, present = stack_labels(samples, self.tasks)
        return Batch(
            ids=[s.id for s in samples],
            index=torch.tensor([key[2] for key in keys]),
            image=stack_images(samples),
            labels=labels,
            present=present,
            valid_size=[s.valid_size or s.size for s in samples],
            epoch=keys[0][0],
            position=keys[0][1],
        )
