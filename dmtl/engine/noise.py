"""Noise in the engine: keys for captured graphs, and the average of several noise samples.

The average is that of `Task.values` (probabilities, unit vectors, numbers) at the size of the image. It is
computed for a band of rows at a time, so that memory does not grow with classes times pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.diffusion import CounterNoise, Pairs
from dmtl.diffusion.noise import Draws
from dmtl.diffusion.pairs import concat
from dmtl.tasks import Task

BAND = 1 << 22  # maximum elements of upsampled logits in memory at a time


@dataclass(frozen=True)
class KeyedNoise:
    """Noise from given keys, which a captured graph reads again at every replay.

    Attributes:
        tasks: names of the tasks.
        key_R3: keys of the rows of all these tasks, from `keys_of`.
    """

    tasks: tuple[str, ...]
    key_R3: Tensor

    def draws(self, pairs: Pairs, x: Tensor) -> Draws:
        """Return the noise of signals whose rows are the whole batch for each of some tasks."""
        each = dict(zip(self.tasks, self.key_R3.chunk(len(self.tasks)), strict=True))
        key = self.key_R3 if pairs.tasks == self.tasks else concat([each[task] for task in pairs.tasks])
        return lambda draw: {"key_B3": key, "step": draw}


def keys_of(
    noises: Sequence[CounterNoise], tasks: tuple[str, ...], batch: int, device: torch.device
) -> list[Tensor]:
    """Return the keys [R, 3] of each noise source for a batch of all tasks.

    Keys of usual sources are cached.
    """
    usual = (noise.samples is None and isinstance(noise.seed, int) for noise in noises)
    return [
        (_usual_key(noise.seed, tasks, batch, device) if kept else _key(noise, tasks, batch, device))
        for noise, kept in zip(noises, usual, strict=True)
    ]


def _key(noise: CounterNoise, tasks: tuple[str, ...], batch: int, device: torch.device) -> Tensor:
    pairs = Pairs.of(dict.fromkeys(tasks), batch)
    return noise.draws(pairs, torch.empty(0, device=device))(0)["key_B3"]


@functools.lru_cache(maxsize=64)
def _usual_key(seed: int, tasks: tuple[str, ...], batch: int, device: torch.device) -> Tensor:
    return _key(CounterNoise(seed), tasks, batch, device)


def average(task: Task, draws: Sequence[Tensor], size: tuple[int, int], factor: int) -> tuple[Tensor, Tensor]:
    """Return the map of the mean over noise samples, and its uncertainty, float32 [B, H, W].

    Args:
        task: the task.
        draws: logits [B, C_T, h, w] of each noise sample.
        size: (H, W) of the image, at most (factor h, factor w): the rest is padding.
        factor: side of the square of image pixels for each pixel of the logits.
    """
    maps, uncertain = [], []
    for rows in _bands(draws[0], size, factor):
        mean = task.values(_upsampled(draws[0], rows, size, factor))
        squares = torch.zeros_like(mean[:, 0])
        for number, logits in enumerate(draws[1:], 2):
            values = task.values(_upsampled(logits, rows, size, factor))
            change = values - mean  # Welford's algorithm avoids differences of large squares
            mean = mean + change / number
            squares += (change * (values - mean)).sum(1)
        maps.append(task.from_values(mean))
        uncertain.append(task.uncertainty(mean, squares / len(draws)))
    return torch.cat(maps, -2), torch.cat(uncertain, -2)


def _bands(logits: Tensor, size: tuple[int, int], factor: int) -> Iterator[tuple[int, int]]:
    """Yield rows [begin, end) of the logits that are upsampled together."""
    h = -(-size[0] // factor)
    rows = max(1, BAND // max(1, logits[:, :, 0].numel() * factor**2))
    for begin in range(0, h, rows):
        yield begin, min(begin + rows, h)


def _upsampled(logits: Tensor, rows: tuple[int, int], size: tuple[int, int], factor: int) -> Tensor:
    """Upsample some rows of the logits bilinearly, with exactly the result of upsampling all rows.

    Interpolation needs one more row on either side.
    """
    begin, end = rows
    above, below = min(begin, 1), min(logits.shape[-2] - end, 1)
    part = logits[..., begin - above : end + below, :].float()
    part = F.interpolate(part, scale_factor=factor, mode="bilinear", align_corners=False)
    height = min(factor * end, size[0]) - factor * begin
    return part[..., factor * above : factor * above + height, : size[1]]
