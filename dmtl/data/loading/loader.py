"""Load batches that depend only on (seed, epoch, position).

The order of an epoch depends only on (seed, epoch), and the augmentation of an image on (seed, epoch, index).
So batches are the same for any number of worker processes, and a run can resume at any position. No global
random state is used. Several training processes share each batch, in the order of its rows, so the samples of
a step do not depend on the number of processes either.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dmtl.data.base import LabelledImages, Sample, source_of
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.batch import Batch, Collate
from dmtl.data.loading.order import Balanced, Weighted, earlier, in_blocks
from dmtl.data.loading.transforms import Transform, eval_transform
from dmtl.data.loading.wrappers import Cached
from dmtl.data.parallel import end_if_lost, watched
from dmtl.errors import DataError


@dataclass(kw_only=True)
class LoaderOptions:
    """How a `Loader` makes batches.

    Args:
        batch_size: images in a batch, over all processes.
        seed: seed of the order and the augmentations.
        shuffle: use a new order in each epoch (training), and draw the images of several sources as often as
            their weights say. False: keep the order of the data set (evaluation).
        drop_last: drop an incomplete last batch; None: the value of `shuffle`.
        only_labelled: skip images without any visible label; None: the value of `shuffle`.
        balance: include a visible label of every task in every batch. Images of tasks with few labels may
            then occur several times in an epoch, and others not at all. Needs `shuffle` and `drop_last`.
        skip_corrupt: number of unreadable samples (DataError) that may be skipped. Each one is reported in
            `Batch.skipped`; one more raises its error.
        workers: processes that read and transform, each two batches ahead; 0: use this process.
        pin: put batches into page-locked memory, for a GPU.
        epoch: `iter(loader)` yields the batches of this epoch.
        start: position of the first batch that `iter(loader)` yields.
        rank: the number of this process among `world` processes; it reads only its part of every batch.
        world: number of training processes; more than one needs `drop_last`. For evaluation see
            `Loader.shard`.
    """

    batch_size: int = 8
    seed: int = 0
    shuffle: bool = True
    drop_last: bool | None = None
    only_labelled: bool | None = None
    balance: bool = False
    skip_corrupt: int = 0
    workers: int = 0
    pin: bool = False
    epoch: int = 0
    start: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "skip_corrupt", "workers", "seed", "epoch", "start", "rank", "world"):
            value, least = getattr(self, name), int(name in ("batch_size", "world"))
            if not isinstance(value, int) or value < least:
                raise ValueError(f"make_loader: {name} must be an integer of at least {least}, got {value!r}")
        for name in ("drop_last", "only_labelled"):
            if getattr(self, name) is None:
                setattr(self, name, self.shuffle)
        if self.rank >= self.world:
            raise ValueError(f"make_loader: rank must be in 0..{self.world - 1}, got {self.rank}")
        if self.batch_size < self.world:
            raise ValueError(
                f"make_loader: batch_size must be at least the number of processes, {self.world}, "
                f"got {self.batch_size}"
            )
        if self.world > 1 and not self.drop_last:
            raise ValueError(f"make_loader: drop_last must be True if world > 1, got world {self.world}")
        if self.balance and not (self.shuffle and self.drop_last):
            raise ValueError("make_loader: shuffle and drop_last must be True if balance is True")


class Loader:
    """Iterate over batches; created by `make_loader`.

    `iter(loader)` yields the batches of the epoch `epoch` from position `start` on. `loader.stream(step)`
    yields batches without an end. `loader.corrupt` holds the errors of the samples skipped so far, by index
    in the data set.
    """

    def __init__(
        self, dataset: LabelledImages, visible: LabelMatrix, transform: Transform, options: LoaderOptions
    ):
        self.dataset, self.visible, self.transform, self.options = dataset, visible, transform, options
        self.batch_size = options.batch_size
        self.corrupt: dict[int, str] = {}
        self._shard = (0, 1)
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        labelled = visible.matrix.any(1)
        self._rows = np.flatnonzero(labelled) if options.only_labelled else np.arange(len(dataset))
        if len(self._rows) == 0:
            raise DataError(
                f"{dataset.name}: split {dataset.split!r} has no image with a visible label of "
                f"{', '.join(visible.tasks) or 'any task'}"
            )
        self._shards = _shards(dataset) if options.shuffle else None
        self._weighted = _weighted(dataset, self._rows) if options.shuffle else None
        if self._weighted is not None and options.balance:
            raise DataError(
                f"{dataset.name}: balance and weights of sources both decide how often images are drawn; "
                "remove one of them"
            )
        self._drawn = len(self._rows) if self._weighted is None else len(self._weighted)  # in an epoch
        if options.drop_last and self._drawn < self.batch_size:
            raise DataError(
                f"{dataset.name}: split {dataset.split!r} has {self._drawn} labelled images, "
                f"expected at least batch_size = {self.batch_size}"
            )
        self._balance = _balanced(dataset, visible, self._rows, self.batch_size) if options.balance else None

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        rank, world = self._shard
        return len(range(rank, self._steps, world))

    @property
    def _steps(self) -> int:
        full, rest = divmod(self._drawn, self.batch_size)
        return full + bool(rest and not self.options.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self._run(
            (self.options.epoch, position) for position in range(self.options.start, self._steps)
        )

    def stream(self, step: int = 0) -> Iterator[Batch]:
        """Yield batches without an end, from batch number `step` (over all epochs) on.

        Workers read ahead across the border of epochs, so there is no pause between them.
        """

        def places() -> Iterator[tuple[int, int]]:
            at = step
            while True:
                yield divmod(at, self._steps)
                at += 1

        return self._run(places())

    def shard(self, rank: int, world: int) -> Loader:
        """Return a loader of every `world`-th batch, from position `rank` on, for distributed evaluation."""
        if not 0 <= rank < world:
            raise ValueError(f"Loader.shard: rank must be in 0..{world - 1}, got {rank}")
        part = copy.copy(self)
        part._shard, part.corrupt = (rank, world), {}
        return part

    def order(self, epoch: int) -> np.ndarray:
        """Return indices of the data set in the order of `epoch`, over all processes, int64."""
        if not self.options.shuffle:
            return self._rows
        rng = np.random.default_rng([self.options.seed, epoch])
        if self._balance is not None:
            return self._rows[self._balance.order(rng, self._steps)]
        if self._weighted is None:
            order = rng.permutation(self._rows)
        else:
            order = self._rows[self._weighted.order(rng)]
        if self._shards is not None:
            source, shard = self._shards
            for number in np.unique(source[shard >= 0]):
                at = np.flatnonzero((source[order] == number) & (shard[order] >= 0))
                order[at] = in_blocks(order[at], shard[order[at]], rng)
        return order

    def chosen(self, epoch: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of a batch over all processes: their indices, and how often each has already
        occurred in this epoch."""
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
        loader: DataLoader = DataLoader(
            # DataLoader needs only __getitem__ here, not the class Dataset.
            _Prepared(  # type: ignore[arg-type]
                self.dataset, self.visible, self.transform, self.options.seed
            ),
            batch_sampler=_Places(self, (place for place in places if place[1] % world == rank)),
            collate_fn=Collate(self.dataset, self.visible.tasks),
            num_workers=self.options.workers,
            pin_memory=self.options.pin,
            generator=torch.Generator().manual_seed(0),  # otherwise DataLoader uses torch's global generator
            worker_init_fn=end_if_lost,
        )
        for batch, errors in watched(loader, "data.workers"):
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
        """Fill a memory cache before workers are forked, so that they share it.

        Otherwise each worker would fill its own copy and lose it at the end of an evaluation.
        """
        if (
            self.options.workers
            and isinstance(self.dataset, Cached)
            and multiprocessing.get_start_method() == "fork"
        ):
            rank, world = self._shard
            ours = np.arange(len(self._rows)) // self.batch_size % world == rank
            rows = self._rows if self.options.shuffle else self._rows[ours]
            self.dataset.warm(self.visible, rows.tolist(), threads=self.options.workers)

    def _judge(self, errors: list[tuple[int, DataError | OSError]]) -> None:
        """Raise an error that may not be skipped: an OSError, or one sample more than `skip_corrupt`."""
        for index, error in errors:
            if not isinstance(error, DataError) or self.options.skip_corrupt == 0:
                raise error
            self.corrupt[index] = str(error)
            if len(self.corrupt) > self.options.skip_corrupt:
                raise DataError(
                    f"{error} (unreadable sample number {len(self.corrupt)}, "
                    f"expected at most data.skip_corrupt = {self.options.skip_corrupt})"
                ) from error


def make_loader(
    dataset: LabelledImages,
    labels: LabelMatrix | None = None,
    transform: Transform | None = None,
    *,
    tasks: Sequence[str] | None = None,
    **options: Any,
) -> Loader:
    """Return a loader that makes batches of `dataset`.

    Args:
        dataset: the images and labels.
        labels: which labels may be used, matched by id and task name; None: all that exist. Other labels are
            never read.
        transform: for example `train_transform(size)`; None: only normalise. If the results in a batch differ
            in size, they are padded.
        tasks: names of the tasks to load labels for; None: those of `labels` that the data set has, or all.
        options: fields of `LoaderOptions`.

    Raises:
        DataError: the data set lacks a task, an image has no row in `labels`, no image is left, or a batch is
            too small to be balanced.
        ValueError: an option is wrong.
    """
    chosen = LoaderOptions(**options)
    if tasks is None and labels is not None:
        tasks = [task for task in dataset.tasks if task in labels.tasks]
    visible = dataset.available().subset(tasks=dataset.wanted(tasks))
    if labels is not None:
        visible = visible.intersect(labels)
    return Loader(dataset, visible, transform or eval_transform(), chosen)


def _weighted(dataset: LabelledImages, rows: np.ndarray) -> Weighted | None:
    """Return how to draw images of several sources; None if all have the same weight."""
    if all(weight == 1 for weight in dataset.sources.values()):
        return None
    return Weighted(_sources(dataset)[rows], list(dataset.sources.values()))


def _shards(dataset: LabelledImages) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the source number and the shard number of each image, int [N]; None if no image is in a
    shard."""
    shard = dataset.shard_numbers()
    return None if shard is None else (_sources(dataset), shard)


def _sources(dataset: LabelledImages) -> np.ndarray:
    """Return the number of the source of each image, int [N]."""
    number = {name: place for place, name in enumerate(dataset.sources)}
    return np.array([number[source_of(id)] if number else 0 for id in dataset.ids])


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
            f"{dataset.name}: balance needs at least {balanced.needed} images for a label of each of "
            f"{', '.join(visible.tasks)}, got batch_size = {batch_size}"
        )
    return balanced


Key = tuple[int, int, int, int]
"""(epoch, position, index in the data set, how often the image has occurred before in the epoch)."""


class _Places:
    """Yield, for each batch (epoch, position), the keys of this process's samples."""

    def __init__(self, loader: Loader, places: Iterator[tuple[int, int]]):
        self.loader, self.places = loader, places

    def __iter__(self) -> Iterator[list[Key]]:
        loader = self.loader
        for epoch, position in self.places:
            index, times = (
                np.array_split(part, loader.options.world)[loader.options.rank].tolist()
                for part in loader.chosen(epoch, position)
            )
            yield [(epoch, position, i, n) for i, n in zip(index, times)]


class _Prepared:
    """Read and transform one sample.

    Errors are returned as values, so that workers pass them on unchanged.
    """

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
