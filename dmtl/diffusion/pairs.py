"""The (sample, task) pairs that go through the chain together, as one tensor sorted by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """The rows of a packed tensor [R, ...]: for each task its n rows of the batch, R the sum of n.

    tasks: names, in the order of the rows. rows: for each task int64 [n] (batch rows), None: the whole batch.
    counts: n for each task. Everything is known on the host: no call asks the device how many rows there are.
    """

    tasks: tuple[str, ...]
    rows: tuple[Tensor | None, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor | None], batch: int) -> Pairs:
        """Make pairs from task -> batch rows [n] (None: all `batch` of them)."""
        counts = tuple(batch if r is None else r.shape[0] for r in rows.values())
        return cls(tuple(rows), tuple(rows.values()), counts)

    def single(self) -> list[Pairs]:
        """Split the pairs into one group per task (for signals whose channel counts differ)."""
        return [
            Pairs((task,), (rows,), (count,))
            for task, rows, count in zip(self.tasks, self.rows, self.counts, strict=True)
        ]

    def pack(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Gather the pairs' rows [R, ...] from task -> [B, ...] of the whole batch."""
        return concat([take(maps[t], r) for t, r in zip(self.tasks, self.rows, strict=True)])

    def repeat(self, x: Tensor) -> Tensor:
        """Gather [R, ...], the row of each pair's sample, from [B, ...] that all tasks share."""
        rows = [row for row in self.rows if row is not None]
        if len(rows) == len(self.rows):
            return x[concat(rows)]
        return concat([take(x, r) for r in self.rows])

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Split packed [R, ...] into task -> [n, ...], as views."""
        return dict(zip(self.tasks, x.split(self.counts), strict=True))


def take(x: Tensor, rows: Tensor | None) -> Tensor:
    """Return these rows of x, or all for None."""
    return x if rows is None else x[rows]


def concat(parts: list[Tensor]) -> Tensor:
    """Concatenate the parts; return a single one unchanged."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
