"""Predict large images in tiles, and blend the tiles' logits into one map without seams.

Tiles overlap, and their logits are blended with weights that fall linearly towards the edges of a tile, so
the map is continuous. Attention only reaches across one tile instead of the whole image, so tiled maps are
close to untiled ones, but not equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from dmtl.models.initial import PAD_MULTIPLE


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Return the starts of tiles of `side` pixels that cover `length` pixels.

    The tiles are evenly spread and overlap by at least `overlap` pixels. All arguments must be multiples of
    32, and so are the starts.
    """
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    room = (length - side) // PAD_MULTIPLE
    return [PAD_MULTIPLE * (room * i // (count - 1)) for i in range(count)]


def tiled(
    predict: Callable[[Tensor], tuple[list[dict[str, Tensor]], int]], padded: Tensor, side: int, overlap: int
) -> tuple[list[dict[str, Tensor]], int]:
    """Compute logits of a padded image [B, 3, H, W] from those of its tiles.

    Args:
        predict: function that returns, for a tile [B, 3, h, w], the logits {task: [B, C_T, h/8, w/8]} of each
            noise sample, and the number of steps; or logits at 1/4.
        padded: the image, H and W multiples of 32.
        side: side of a tile, a multiple of 32.
        overlap: minimum overlap of neighbouring tiles, a multiple of 32 below `side`.

    Returns:
        {task: float32 [B, C_T, H/8, W/8]} (or at 1/4) for each noise sample, and the largest number of steps
        of a tile.
    """
    height, width = padded.shape[-2:]
    rows, columns = (starts(length, side, overlap) for length in (height, width))
    tile = (min(side, height), min(side, width))
    blends: list[_Blend] = []
    most = 0
    for y, x in itertools.product(rows, columns):
        draws, steps = predict(padded[..., y : y + tile[0], x : x + tile[1]])
        most = max(most, steps)
        if not blends:
            blends = [_Blend(draw, (height, width), tile, overlap) for draw in draws]
        for blend, draw in zip(blends, draws, strict=True):
            blend.add(draw, y, x)
    return [blend.mean() for blend in blends], most


class _Blend:
    """The weighted sums of the tiles' logits {task: [B, C_T, h, w]}, all of one resolution.

    Args:
        draw: logits of a tile.
        size: (height, width) of the padded image.
        tile: (height, width) of a tile.
        overlap: minimum overlap of neighbouring tiles.
    """

    def __init__(self, draw: dict[str, Tensor], size: tuple[int, int], tile: tuple[int, int], overlap: int):
        some = next(iter(draw.values()))
        self.factor = factor = tile[0] // some.shape[-2]
        ramp_H, ramp_W = (_ramp(length // factor, overlap // factor, some.device) for length in tile)
        self.weight = ramp_H[:, None] * ramp_W
        frame = [length // factor for length in size]
        self.total = some.new_zeros(frame, dtype=torch.float32)
        self.sums = {t: z.new_zeros(*z.shape[:2], *frame, dtype=torch.float32) for t, z in draw.items()}

    def add(self, draw: dict[str, Tensor], y: int, x: int) -> None:
        """Add the logits of the tile whose upper left pixel is (x, y)."""
        (h, w), top, left = self.weight.shape, y // self.factor, x // self.factor
        place = (..., slice(top, top + h), slice(left, left + w))
        self.total[place] += self.weight
        for task, logits in draw.items():
            self.sums[task][place] += self.weight * logits

    def mean(self) -> dict[str, Tensor]:
        """Return the blended logits; the sums are overwritten."""
        for logits in self.sums.values():
            logits /= self.total
        return self.sums


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """Return weights that are 1 inside and fall linearly over the overlap towards both ends, but not to 0."""
    place = torch.arange(length, device=device) + 0.5
    nearest = torch.minimum(place, length - place)
    return (nearest / max(overlap, 1)).clamp(max=1.0)
