"""Decide which process predicts which inputs of a shared list: a pure function of the list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from dmtl.errors import ConfigError
from dmtl.predict.inputs import Input
from dmtl.runtime.distributed import World


def units_of(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    """Cut the inputs into what is computed together: up to `size` neighbouring images, or one video.

    Batches never cross a unit, so the maps of an image do not depend on how the units are shared.
    """
    for is_video, run in groupby(inputs, key=lambda item: item.is_video):
        items, step = list(run), 1 if is_video else size
        yield from (items[i : i + step] for i in range(0, len(items), step))


@dataclass(frozen=True)
class Part:
    """One of `count` parts of the inputs; `first` to `last` are those of the processes started together."""

    number: int = 0
    count: int = 1
    first: int = 0
    last: int = 0

    @classmethod
    def of(cls, shard: tuple[int, int], world: World) -> Part:
        """Return the part of a process in a shard (k, n), 1 <= k <= n."""
        k, n = shard
        if not 1 <= k <= n:
            raise ConfigError(f"predict_files: shard must be (k, n) with 1 <= k <= n, got ({k}, {n})")
        first = (k - 1) * world.size
        return cls(first + world.rank, n * world.size, first, first + world.size - 1)

    @property
    def together(self) -> range:
        """Return the parts of this process and of those that were started with it."""
        return range(self.first, self.last + 1)

    def shards(self, numbers: Iterable[int]) -> list[int]:
        """Return the shards, from 1, of these parts."""
        return sorted({number // len(self.together) + 1 for number in numbers})

    def take(self, units: Iterable[list[Input]]) -> Iterator[list[Input]]:
        """Deal out units in turn, images from the first part on and videos from the last."""
        turn = {False: self.number, True: self.count - 1 - self.number}
        dealt: Counter[bool] = Counter()
        for unit in units:
            is_video = unit[0].is_video
            if dealt[is_video] % self.count == turn[is_video]:
                yield unit
            dealt[is_video] += 1
