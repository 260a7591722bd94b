"""The source of the chain's noise: a counter-based generator, or arrays from the caller.

Draw number k = 0 is the forward process; k = 1, 2, ... is the noise added by the sampler after its k-th step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dmtl.diffusion.pairs import Pairs, concat

Draws = Callable[[int], dict]
"""Number of a draw -> noise arguments of `dmtl.ops.q_sample` and `posterior_step`."""


class NoiseSource(Protocol):
    """The source of noise for a run of the chain."""

    def draws(self, pairs: Pairs, x: Tensor) -> Draws:
        """Return the draws for packed signals like x [R, C, h, w], whose rows `pairs` describes."""


class CounterNoise:
    """Noise that depends only on (seed, task, draw, sample, element).

    A run can be replayed, and a sample's noise does not depend on its batch, on the device or on the backend.

    Args:
        seed: any integer; its low 64 bits count. Or an int64 scalar tensor, which a captured graph reads
            again at every replay.
        samples: int64 [B], the identity of each batch row; default 0, 1, ... B-1.
    """

    def __init__(self, seed: int | Tensor = 0, samples: Tensor | None = None):
        on_device = isinstance(seed, Tensor) and seed.dtype == torch.int64 and seed.dim() == 0
        if isinstance(seed, bool) or not (on_device or isinstance(seed, int)):
            raise TypeError(f"CounterNoise: seed must be an int, got {type(seed).__name__}")
        if samples is not None and (
            not isinstance(samples, Tensor) or samples.dtype != torch.int64 or samples.dim() != 1
        ):
            got = (
                f"{samples.dtype} {list(samples.shape)}"
                if isinstance(samples, Tensor)
                else type(samples).__name__
            )
            raise TypeError(f"CounterNoise: samples must be an int64 tensor [B], got {got}")
        self.seed = seed if isinstance(seed, Tensor) else _signed(seed)
        self.samples = samples

    def another(self, number: int) -> CounterNoise:
        """Return another noise stream for the same samples, by number; number 0 is this one."""
        return CounterNoise(self.seed + number * _GOLDEN, self.samples)

    def draws(self, pairs: Pairs, x: Tensor) -> Draws:
        """Compute keys [R, 3] = (seed, task, sample) for the rows of x, once for all draws."""
        if self.samples is None:
            places = zip(pairs.rows, pairs.counts, strict=True)
            samples_R = concat(
                [
                    torch.arange(n, device=x.device) if rows is None else rows.to(x.device)
                    for rows, n in places
                ]
            )
        else:
            samples_R = pairs.repeat(self.samples.to(x.device))
        named, rows = samples_R.shape[0], sum(pairs.counts)  # symbolic in an export; len() would not be
        if named != rows:
            raise ValueError(
                f"CounterNoise: samples must name every image, got {named} for {rows} rows of "
                f"{len(pairs.tasks)} tasks"
            )
        numbers = [(task_number(task), n) for task, n in zip(pairs.tasks, pairs.counts, strict=True)]
        if torch.compiler.is_compiling():  # the number of rows may be symbolic
            number_R = concat([torch.full((n,), number, device=x.device) for number, n in numbers])
        else:
            flat = [number for number, n in numbers for _ in range(n)]
            number_R = torch.tensor(flat, dtype=torch.int64).to(x.device, non_blocking=True)
        if isinstance(self.seed, Tensor):
            seed_R = self.seed.expand(samples_R.shape)
        else:
            seed_R = torch.full_like(samples_R, self.seed)
        key_R3 = torch.stack([seed_R, number_R, samples_R], 1)
        return lambda draw: {"key_B3": key_R3, "step": draw}


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: multiples of it visit all 2^64 seeds


def _signed(seed: int) -> int:
    """Return the low 64 bits as a signed integer."""
    return (seed + 2**63) % 2**64 - 2**63


class ArrayNoise:
    """Noise from the caller's arrays: for each task the draws k = 0, 1, ... as [B, C, h, w], rows as in the
    batch."""

    def __init__(self, arrays: Mapping[str, Sequence[Tensor] | Tensor]):
        self.arrays = arrays

    def draws(self, pairs: Pairs, x: Tensor) -> Draws:
        """Look the arrays up when a draw is requested; raise ValueError if one is missing or misshapen."""

        def draw(number: int) -> dict:
            parts = [
                self._array(task, number, rows, (count, *x.shape[1:]))
                for task, rows, count in zip(pairs.tasks, pairs.rows, pairs.counts, strict=True)
            ]
            return {"noise": torch.cat(parts).to(x.device, x.dtype)}

        return draw

    def _array(self, task: str, draw: int, rows: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if task not in self.arrays or draw >= len(self.arrays[task]):
            held = len(self.arrays.get(task, ()))
            raise ValueError(f"ArrayNoise: arrays must hold draw {draw} of task {task!r}, got {held} draws")
        noise = self.arrays[task][draw]
        noise = noise if rows is None else noise[rows]
        if tuple(noise.shape) != shape:
            raise ValueError(
                f"ArrayNoise: arrays[{task!r}][{draw}] must have shape {shape}, got {tuple(noise.shape)}"
            )
        return noise


def task_number(task: str) -> int:
    """Return a task's number in the noise counter: the CRC-32 of its name, which does not depend on the other
    tasks."""
    return zlib.crc32(task.encode())


# Dynamo cannot trace zlib. `torch.compiler.assume_constant_result` sets this mark, too, but imports
# torch._dynamo for it, which takes as long as torch itself.
task_number._dynamo_marked_constant = True  # type: ignore[attr-defined]
