"""Batches that are a function of (seed, epoch, position) alone.

The order of an epoch depends on (seed, epoch), the augmentation of an image on (seed, epoch, index): the
same batches come out with any number of worker processes, and a run can go on at any position. No global
random state is read or moved. Several training processes share each batch, rows in order: the samples of a
step are the same whatever their number.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.batch import Batch, Collate
from dmtl.data.loading.order import Balanced, earlier
from dmtl.data.loading.transforms import Transform, eval_transform
from dmtl.data.loading.wrappers import Cached
from dmtl.errors import DataError


class Loader:
    """Iterates batches; made by `make_loader`.

    `iter(loader)` gives the epoch `epoch` from `start` on, `loader.stream(step)` goes on for ever.
    `loader.corrupt` tells what was wrong with the samples left out so far, by index in the data set.
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
        balance: Balanced | None,
        skip_corrupt: int,
        workers: int,
        pin: bool,
        epoch: int,
        start: int,
        rank: int,
        world: int,
    ):
        self.dataset, self.visible, self.transform = dataset, visible, transform
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.workers, self.pin, self.epoch, self.start = workers, pin, epoch, start
        self.rank, self.world, self.skip_corrupt = rank, world, skip_corrupt
        self.corrupt: dict[int, str] = {}
        self._rows, self._balance, self._shard = rows, balance, (0, 1)
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Batches that a whole epoch gives here."""
        rank, world = self._shard
        return len(range(rank, self._steps, world))

    @property
    def _steps(self) -> int:
        full, rest = divmod(len(self._rows), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self._run((self.epoch, position) for position in range(self.start, self._steps))

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """Endless batches from global number `step` on, epoch after epoch, without a pause between them."""

        def places() -> Iterator[tuple[int, int]]:
            at = step
            while True:
                yield divmod(at, self._steps)
                at += 1

        return self._run(places())

    def shard(self, rank: int, world: int) -> Loader:
        """The same batches, but only those whose `position` is `rank` modulo `world`: for evaluation."""
        if not 0 <= rank < world:
            raise ValueError(f"Loader.shard: rank must be in 0..{world - 1}, got {rank}")
        part = copy.copy(self)
        part._shard, part.corrupt = (rank, world), {}
        return part

    def order(self, epoch: int) -> np.ndarray:
        """The data set's indices in the order of `epoch`, over all processes."""
        if not self.shuffle:
            return self._rows
        rng = np.random.default_rng([self.seed, epoch])
        if self._balance is None:
            return rng.permutation(self._rows)
        return self._rows[self._balance.order(rng, self._steps)]

    def chosen(self, epoch: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The images of a batch over all processes, and how often each has come before in this epoch."""
        if epoch not in self._orders:
            order = self.order(epoch)
            self._orders = dict([*self._orders.items(), (epoch, (order, earlier(order)))][-2:])
        rows = slice(position * self.batch_size, (position + 1) * self.batch_size)
        order, times = self._orders[epoch]
        return order[rows], times[rows]

    def _run(self, places: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        rank, world = self._shard
        if len(self) == 0:
            return
        self._share_cache()
        loader = DataLoader(
            _Prepared(self.dataset, self.visible, self.transform, self.seed),
            batch_sampler=_Places(self, (place for place in places if place[1] % world == rank)),
            collate_fn=Collate(self.dataset, self.visible.tasks),
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator().manual_seed(0),  # else DataLoader draws from torch's global generator
        )
        for batch, errors in loader:
            self._judge(errors)
            if batch is None:
                raise DataError(f"{errors[0][1]} (and no other sample of this process's batch can be read)")
            batch.skipped = [str(error) for _, error in errors]
            chosen, _ = self.chosen(batch.epoch, batch.position)
            labelled = self.visible.matrix[chosen].sum(0)
            batch.total = len(chosen)
            batch.labelled = {task: int(n) for task, n in zip(self.visible.tasks, labelled)}
            yield batch

    def _share_cache(self) -> None:
        """Fills a memory cache before workers are forked: they then share it.

        Otherwise each would read everything for a copy of its own, and lose it when an evaluation ends.
        """
        if self.workers and isinstance(self.dataset, Cached) and multiprocessing.get_start_method() == "fork":
            rank, world = self._shard
            ours = np.arange(len(self._rows)) // self.batch_size % world == rank
            rows = self._rows if self.shuffle else self._rows[ours]
            self.dataset.warm(self.visible, rows.tolist(), threads=self.workers)

    def _judge(self, errors: list[tuple[int, DataError | OSError]]) -> None:
        """Raises what may not be skipped: any OSError, and the first sample beyond `skip_corrupt`."""
        for index, error in errors:
            if not isinstance(error, DataError) or self.skip_corrupt == 0:
                raise error
            self.corrupt[index] = str(error)
            if len(self.corrupt) > self.skip_corrupt:
                raise DataError(
                    f"{error} (unreadable sample number {len(self.corrupt)}, "
                    f"expected at most data.skip_corrupt = {self.skip_corrupt})"
                ) from error


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
    balance: bool = False,
    tasks: Sequence[str] | None = None,
    skip_corrupt: int = 0,
    workers: int = 0,
    pin: bool = False,
    epoch: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """Batches of `dataset`, with the labels that `labels` shows and that exist (None: all that exist).

    Args:
        labels: matched with the data set by id and task name; what it hides is never read.
        transform: e.g. `train_transform(size)`; None normalises only. Different sizes in a batch are padded.
        batch_size: images of a batch, over all processes.
        shuffle: a new order for each epoch (training); False keeps that of the data set (evaluation).
        drop_last: leave out an incomplete last batch; by default when shuffling.
        only_labelled: leave out images without any visible label; by default when shuffling.
        balance: every batch holds a visible label of every task; images of tasks with few labels then come
            more than once in an epoch, others not at all. Needs `shuffle` and `drop_last`.
        tasks: the tasks whose labels are wanted; by default those of `labels` that the data set has, or all.
        skip_corrupt: samples that cannot be read (DataError) and may be left out, each told in
            `Batch.skipped`; one more raises its error.
        workers: processes that read and transform, two batches ahead each; 0 does it here.
        pin: page-locked memory, for a GPU.
        epoch, start: `iter(loader)` gives the batches of this epoch from this position on.
        rank, world: this process reads its part of every batch, number `rank` of `world` (needs `drop_last`
            where there are several). For evaluation see `Loader.shard`.

    Errors: DataError for a task that the data set lacks, an image without a row in `labels`, nothing left, a
    batch too small to be balanced.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("skip_corrupt", skip_corrupt, 0),
        ("workers", workers, 0),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
        ("start", start, 0),
        ("rank", rank, 0),
        ("world", world, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"make_loader: {name} must be an integer of at least {least}, got {value!r}")
    drop_last = shuffle if drop_last is None else drop_last
    if rank >= world:
        raise ValueError(f"make_loader: rank must be in 0..{world - 1}, got {rank}")
    if batch_size < world:
        raise ValueError(
            f"make_loader: batch_size must be at least the number of processes, {world}, got {batch_size}"
        )
    if world > 1 and not drop_last:
        raise ValueError(f"make_loader: world needs drop_last, got world {world} without")
    if balance and not (shuffle and drop_last):
        raise ValueError("make_loader: balance needs shuffle and drop_last")
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
        balance=_balanced(dataset, visible, rows, batch_size) if balance else None,
        skip_corrupt=skip_corrupt,
        workers=workers,
        pin=pin,
        epoch=epoch,
        start=start,
        rank=rank,
        world=world,
    )


def _balanced(dataset: LabelledImages, visible: LabelMatrix, rows: np.ndarray, batch_size: int) -> Balanced:
    matrix = visible.matrix[rows]
    for task, images in zip(visible.tasks, matrix.sum(0)):
        if images == 0:
            raise DataError(
                f"{dataset.name}: split {dataset.split!r} has no visible label of {task}, "
                "expected one of every task with balance"
            )
    balanced = Balanced(matrix, batch_size)
    if balanced.needed > batch_size:
        raise DataError(
            f"{dataset.name}: balance takes at least {balanced.needed} images for a label of each of "
            f"{', '.join(visible.tasks)}, got batch_size = {batch_size}"
        )
    return balanced


Key = tuple[int, int, int, int]
"""(epoch, position, index in the data set, how often the image has come before in the epoch)."""


class _Places:
    """Turns places (epoch, position) into the keys of this process's samples."""

    def __init__(self, loader: Loader, places: Iterator[tuple[int, int]]):
        self.loader, self.places = loader, places

    def __iter__(self) -> Iterator[list[Key]]:
        loader = self.loader
        for epoch, position in self.places:
            index, times = (
                np.array_split(part, loader.world)[loader.rank].tolist()
                for part in loader.chosen(epoch, position)
            )
            yield [(epoch, position, i, n) for i, n in zip(index, times)]


class _Prepared:
    """Reads and transforms one sample. An error comes back as a value, and so arrives as it was raised."""

    def __init__(self, dataset: LabelledImages, visible: LabelMatrix, transform: Transform, seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.shown = [[task for task, on in zip(visible.tasks, row) if on] for row in visible.matrix]

    def __getitem__(self, key: Key) -> tuple[Key, Sample | DataError | OSError]:
        epoch, _, index, times = key
        try:
            sample = self.dataset.read(index, self.shown[index])
        except (DataError, OSError) as error:
            return key, error
        rng = np.random.default_rng([self.seed, epoch, index, *([times] if times else [])])
        return key, self.transform(sample, self.dataset.tasks, rng)
