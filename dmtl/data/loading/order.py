"""Orders of an epoch: every batch has a label of every task, images occur by weight, or shards stay
together. Also a few evenly spread images, to look at."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import cached_property

import numpy as np

TOGETHER = 8
"""Number of shards whose images are mixed at a time."""


class Balanced:
    """Order rows of a label matrix so that each batch has a label of each task.

    A batch first gets an image for each task that it lacks, beginning with the task that has the fewest
    labels: a random one of the images that fit and have been used least often in this epoch. Images that no
    batch needed fill the rest, each at most once. So an image occurs several times in an epoch only if a task
    has too few labels, and never twice in a batch.

    Args:
        matrix: bool [N, T], labels of the images that may be drawn; every task has at least one.
        batch_size: images in a batch.
    """

    def __init__(self, matrix: np.ndarray, batch_size: int):
        self.batch_size, self.count, self.tasks = batch_size, *matrix.shape
        self._every = (1 << self.tasks) - 1
        bits = [1 << task for task in range(self.tasks)]
        # the set of an image's tasks as the bits of an integer
        self._patterns = [sum(bit for bit, on in zip(bits, row) if on) for row in matrix.tolist()]
        self._scarce = np.argsort(matrix.sum(0), kind="stable").tolist()
        self._known: dict[tuple[int, int], bool] = {}

    @cached_property
    def needed(self) -> int:
        """Return the minimum number of images in a batch that has a label of every task."""
        return next(images for images in range(self.tasks + 1) if self._fits(self._every, images))

    def order(self, rng: np.random.Generator, batches: int) -> np.ndarray:
        """Return rows of the matrix, int64 [batches * batch_size], batch after batch.

        The caller makes sure that `needed` <= batch_size and batches * batch_size <= N.
        """
        draw = rng.permutation(self.count)
        used = np.zeros(self.count, bool)
        piles: dict[int, list[tuple[int, int, int]]] = {}  # images of one pattern: (times used, draw, row)
        for row, pattern in enumerate(self._patterns):
            piles.setdefault(pattern, []).append((0, int(draw[row]), row))
        for pile in piles.values():
            heapq.heapify(pile)
        with_task = [[p for p in piles if p >> task & 1] for task in range(self.tasks)]
        chosen: list[list[int]] = []
        for _ in range(batches):
            batch: list[int] = []
            missing = self._every
            while missing:
                slots, fitting = self.batch_size - len(batch) - 1, with_task[self._rarest(missing)]
                if missing.bit_count() - 1 > slots:
                    fitting = [p for p in fitting if self._fits(missing & ~p, slots)]
                pattern = min(fitting, key=lambda p: piles[p][0])
                times, drawn, row = piles[pattern][0]
                heapq.heapreplace(piles[pattern], (times + 1, drawn, row))
                batch.append(row)
                missing &= ~pattern
            chosen.append(batch)
            used[batch] = True
        unused = np.flatnonzero(~used)
        rest = iter(unused[np.argsort(draw[unused])].tolist())
        filled = [batch + [next(rest) for _ in range(self.batch_size - len(batch))] for batch in chosen]
        table = rng.permuted(np.array(filled, np.int64).reshape(batches, self.batch_size), axis=1)
        return table[rng.permutation(batches)].ravel()

    def _rarest(self, missing: int) -> int:
        return next(task for task in self._scarce if missing >> task & 1)

    @cached_property
    def _largest(self) -> list[int]:
        """Return the patterns (sets of tasks as bits) that are not subsets of another one."""
        kept: list[int] = []
        for pattern in sorted(set(self._patterns), key=int.bit_count, reverse=True):
            if not any(pattern | larger == larger for larger in kept):
                kept.append(pattern)
        return kept

    def _fits(self, missing: int, slots: int) -> bool:
        """Return whether `slots` images can have labels of all tasks in `missing` (bits), by exact search."""
        if missing.bit_count() <= slots:
            return True
        if missing.bit_count() > slots * self._largest[0].bit_count():
            return False
        key = missing, slots
        if key not in self._known:
            task = self._rarest(missing)
            left = {missing & ~pattern for pattern in self._largest if pattern >> task & 1}
            self._known[key] = any(self._fits(m, slots - 1) for m in sorted(left, key=int.bit_count))
        return self._known[key]


class Weighted:
    """Order rows of several groups so that each row occurs in an epoch as often as its group's weight says.

    Each epoch draws the same number of rows from a group: its size times its weight, rounded, and at least
    one. With a weight of 2.5, every row occurs twice, and a random half of the rows a third time.

    Args:
        group: group of each row, int [N].
        weights: weight of each group.
    """

    def __init__(self, group: np.ndarray, weights: Sequence[float]):
        self.parts = []
        for number, weight in enumerate(weights):
            if len(rows := np.flatnonzero(group == number)):
                self.parts.append((rows, max(1, round(len(rows) * weight))))

    def __len__(self) -> int:
        return sum(draws for _, draws in self.parts)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return indices into `group`, int64 [len(self)], in random order."""
        chosen = []
        for rows, draws in self.parts:
            times, rest = divmod(draws, len(rows))
            chosen += [rows] * times + [rng.permutation(rows)[:rest]]
        return rng.permutation(np.concatenate(chosen))


def in_blocks(order: np.ndarray, shard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rearrange an order so that only `TOGETHER` shards are read at a time.

    Shards are grouped at random into blocks, which follow each other; within a block, images keep their
    order. If there are no more than `TOGETHER` shards, nothing changes.

    Args:
        order: the order, int [M].
        shard: shard of each entry of `order`, int [M].
        rng: source of randomness.
    """
    known, place = np.unique(shard, return_inverse=True)
    block = rng.permutation(len(known)) // TOGETHER
    return order[np.argsort(block[place], kind="stable")]


def earlier(order: np.ndarray) -> np.ndarray:
    """Return how often each entry of `order` has occurred before, int64 [M]."""
    by_value = np.argsort(order, kind="stable")
    value = order[by_value]
    new = np.r_[True, value[1:] != value[:-1]] if len(order) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    times = np.empty(len(order), np.int64)
    times[by_value] = np.arange(len(order)) - first
    return times


def evenly(length: int, count: int) -> list[int]:
    """Return at most `count` indices that are evenly spread over 0 .. length - 1."""
    count = min(count, length)
    return [round((i + 0.5) * length / count - 0.5) for i in range(count)]
