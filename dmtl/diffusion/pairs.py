"""The (sample, task) pairs that walk through the chain together, as one tensor sorted by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """What the rows of a packed tensor [R, ...] are: for each task its n rows of the batch, R the sum of n.

    tasks: names, in the order of the rows. rows: for each task int64 [n] (batch rows), None: the whole batch.
    counts: n for each task. Everything is known on the host: no call asks the device how many rows there are.
    """

    tasks: tuple[str, ...]
    rows: tuple[Tensor | None, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor | None], batch: int) -> Pairs:
        """task -> batch rows [n] (None: all `batch` of them)."""
        counts = tuple(batch if r is None else r.shape[0] for r in rows.values())
        return cls(tuple(rows), tuple(rows.values()), counts)

    def single(self) -> list[Pairs]:
        """The same pairs as one group for each task (for signals whose channel counts differ)."""
        return [
            Pairs((task,), (rows,), (count,))
            for task, rows, count in zip(self.tasks, self.rows, self.counts, strict=True)
        ]

    def pack(self, maps: Mapping[str, Tensor]) -> Tensor:
        """task -> [B, ...] of the whole batch; returns the pairs' rows [R, ...]."""
        return joined([taken(maps[t], r) for t, r in zip(self.tasks, self.rows, strict=True)])

    def repeat(self, x: Tensor) -> Tensor:
        """What all tasks share, [B, ...] of the whole batch; returns [R, ...], the row of each pair's
        sample."""
        return joined([taken(x, r) for r in self.rows])

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Packed [R, ...] -> task -> [n, ...], views."""
        return dict(zip(self.tasks, x.split(self.counts), strict=True))


def taken(x: Tensor, rows: Tensor | None) -> Tensor:
    """These rows of x; all of them for None."""
    return x if rows is None else x[rows]


def joined(parts: list[Tensor]) -> Tensor:
    """The parts below one another; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
