"""Parts shared by the operators between maps and tokens.

These are argument checks, channels-last maps, and bilinear interpolation as matrices.

Legend: R rows, C channels, h x w the map, r the reduction (1, 2 or 4), N = (h / r) (w / r) tokens, row by
row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks

REDUCTIONS = (1, 2, 4)


def check_reduction(op: str, reduction: object) -> None:
    """Require 1, 2 or 4."""
    checks.integer(op, "reduction", reduction)
    if reduction not in REDUCTIONS:
        checks.fail(op, "reduction", "1, 2 or 4", reduction)


def check_map(op: str, argument: str, x: object, reduction: int) -> None:
    """Require a floating map [R, C, h, w] whose sides are multiples of the reduction."""
    x = checks.data(op, argument, x)
    if x.dim() != 4:
        checks.fail(op, argument, "of shape [R, C, h, w]", list(x.shape))
    if x.shape[2] % reduction or x.shape[3] % reduction:
        contract = f"of a height and width that are multiples of the reduction {reduction}"
        checks.fail(op, argument, contract, list(x.shape))


def tokens_shape(x: Tensor, reduction: int) -> tuple[int, int, int]:
    """Return the shape [R, N, C] of the tokens of a map [R, C, h, w]."""
    R, C, h, w = x.shape
    return R, (h // reduction) * (w // reduction), C


def empty_tokens(x: Tensor, reduction: int) -> Tensor:
    """Allocate the tokens [R, N, C] of a map [R, C, h, w]."""
    return torch.empty(tokens_shape(x, reduction), dtype=x.dtype, device=x.device)


def empty_map(like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Allocate a channels-last map of `like`'s dtype and device, and of its shape unless another is given."""
    shape = tuple(like.shape) if shape is None else shape
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def channels_last(x: Tensor) -> Tensor:
    """Return the map itself if its memory order is pixels x channels, else a copy in that order."""
    return x.contiguous(memory_format=torch.channels_last)


def tokens_as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """View tokens [R, N, C] as the map [R, C, height, width] that they are a grid of."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def interpolation(size: int, reduction: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return bilinear interpolation along one axis (align_corners=False), clamped at the ends, as a matrix
    [size, size / reduction]."""
    grid = size // reduction
    position = ((torch.arange(size, dtype=dtype, device=device) + 0.5) / reduction - 0.5).clamp(min=0)
    low = position.floor()
    way = (position - low).unsqueeze(1)
    token = torch.arange(grid, device=device)
    at_low, at_high = (token == (low + step).clamp(max=grid - 1).unsqueeze(1) for step in (0, 1))
    return at_low.to(dtype) * (1 - way) + at_high.to(dtype) * way
