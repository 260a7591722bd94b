"""Average several noise samples: one map and one uncertainty for each task.

They are averaged as `Task.values` of their logits (probabilities, unit vectors, values) at the image's size,
a band of rows at a time, so that memory does not grow with classes times pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.tasks import Task

BAND = 1 << 22  # elements of upsampled logits held at a time


def average(task: Task, draws: Sequence[Tensor], size: tuple[int, int], factor: int) -> tuple[Tensor, Tensor]:
    """Return the map of the mean over noise samples, and its uncertainty, float32 [B, H, W].

    Args:
        draws: logits [B, C_T, h, w] of each noise sample.
        size: H and W of the image, at most factor h and factor w (the rest was padding).
        factor: pixels of the image to each of the logits', in both directions.
    """
    maps, uncertain = [], []
    for rows in _bands(draws[0], size, factor):
        mean = task.values(_upsampled(draws[0], rows, size, factor))
        squares = torch.zeros_like(mean[:, 0])
        for number, logits in enumerate(draws[1:], 2):
            values = task.values(_upsampled(logits, rows, size, factor))
            change = values - mean  # Welford: avoids differences of large squares
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
    """Upsample rows of the logits bilinearly, exactly as if upsampling all: interpolation needs one more row
    on either side."""
    begin, end = rows
    above, below = min(begin, 1), min(logits.shape[-2] - end, 1)
    part = logits[..., begin - above : end + below, :].float()
    part = F.interpolate(part, scale_factor=factor, mode="bilinear", align_corners=False)
    height = min(factor * end, size[0]) - factor * begin
    return part[..., factor * above : factor * above + height, : size[1]]
