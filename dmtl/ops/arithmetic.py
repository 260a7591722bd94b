"""What several operators' references compute with: the dtype of the arithmetic, and unit vectors."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-4
"""Vectors shorter than this are not scaled up to length 1, which bounds the gradient of normalising."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float32, or float64 for float64 data."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """Return x in the dtype of the arithmetic."""
    return x.to(wide_dtype(x.dtype))


def unit(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return u = z / max(|z|, 1e-4) along dimension 1, and the factor of z in it."""
    scale = z.square().sum(1, keepdim=True).clamp(min=SHORTEST**2).rsqrt()
    return z * scale, scale
