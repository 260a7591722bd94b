"""Prepare labels as the kernels of map_loss read them."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def readable(label: Tensor, ignore: float) -> tuple[Tensor, float]:
    """Return (the label, dense uint8 or float32; `ignore` as it compares with it)."""
    if label.dtype == torch.float32:
        ignore = ctypes.c_float(ignore).value
    elif label.is_floating_point():
        ignore = float(torch.tensor(ignore, dtype=label.dtype))
    dtype = torch.uint8 if label.dtype in (torch.uint8, torch.bool) else torch.float32
    return label.to(dtype).contiguous(), ignore
