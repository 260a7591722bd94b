"""Decide which process predicts which inputs. The decision depends only on the list of inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from dmtl.errors import ConfigError
from dmtl.predict.inputs import Input
from dmtl.runtime.distributed import World


def units_of(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    """Divide the inputs into units: up to `size` neighbouring images, or one video.

    A batch never spans two units, so the maps of an image do not depend on how units are distributed.
    """
    for is_video, run in groupby(inputs, key=lambda item: item.is_video):
        items, step = list(run), 1 if is_video else size
        yield from (items[i : i + step] for i in range(0, len(items), step))


@dataclass(frozen=True)
class Part:
    """Part `number` of `count` parts of the inputs; `first` to `last` are those of processes started
    together."""

    number: int = 0
    count: int = 1
    first: int = 0
    last: int = 0

    @classmethod
    def of(cls, shard: tuple[int, int], world: World) -> Part:
        """Return the part of a process in shard k of n, where `shard` is (k, n) with 1 <= k <= n."""
        k, n = shard
        if not 1 <= k <= n:
            raise ConfigError(f"predict_files: shard must be (k, n) with 1 <= k <= n, got ({k}, {n})")
        first = (k - 1) * world.size
        return cls(first + world.rank, n * world.size, first, first + world.size - 1)

    @property
    def together(self) -> range:
        """Return the numbers of the parts of this process and of those that were started together with it."""
        return range(self.first, self.last + 1)

    def shards(self, numbers: Iterable[int]) -> list[int]:
        """Return the shards, counted from 1, to which these parts belong."""
        return sorted({number // len(self.together) + 1 for number in numbers})

    def take(self, units: Iterable[list[Input]]) -> Iterator[list[Input]]:
        """Yield the units of this part. Units go to the parts in turn: images from the first, videos from the
        last part."""
        turn = {False: self.number, True: self.count - 1 - self.number}
        dealt: Counter[bool] = Counter()
        for unit in units:
            is_video = unit[0].is_video
            if dealt[is_video] % self.count == turn[is_video]:
                yield unit
            dealt[is_video] += 1
