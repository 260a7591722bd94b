"""Random numbers for one scene, the same on every machine and in every NumPy release.

Only `BitGenerator.random_raw` is used: NumPy guarantees its stream, while the methods of
`numpy.random.Generator` may change. The key of Philox is (seed, split) and its counter starts at the scene's
index. Therefore no two scenes share a block of the stream, and splits are disjoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_POOL = 1024


class Draw:
    """Draw random numbers for scene `index` of stream (`seed`, `stream`); all three are integers from 0."""

    def __init__(self, seed: int, stream: int, index: int):
        self._bits = np.random.Philox(
            key=np.array([seed, stream], np.uint64), counter=np.array([0, 0, 0, index], np.uint64)
        )
        self._pool: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a uniform float in [low, high)."""
        if not self._pool:
            self._pool = ((self._bits.random_raw(_POOL) >> np.uint64(11)) * 2.0**-53).tolist()
        return low + (high - low) * self._pool.pop()

    def chance(self, probability: float) -> bool:
        return self() < probability

    def integer(self, low: int, high: int) -> int:
        """Return a uniform integer in low..high, both included."""
        return low + math.floor(self() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[math.floor(self() * len(choices))]

    def sign(self) -> float:
        return 1.0 if self() < 0.5 else -1.0

    def bell(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return float32 numbers of mean 0 and variance 1, nearly normal: sums of four uniform ones."""
        count = math.prod(shape)
        words = self._bits.random_raw(count).astype("<u8").view(np.uint16).reshape(count, 4)
        total = words.sum(axis=1, dtype=np.uint32).astype(np.float32)
        return ((total * (1 / 65536.0) - 2.0) * math.sqrt(3.0)).astype(np.float32).reshape(shape)
