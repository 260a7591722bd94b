"""Maps of drawn shapes and memory layouts, and one rounding, for the tests of the ops on maps."""

from __future__ import annotations

import torch
from torch import Tensor

from .tools import DEVICE

LAYOUTS = ("dense", "channels_last", "sliced", "permuted", "offset")


def drawn_map(shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    """Normals [R, C, h, w] in one of LAYOUTS; "offset" is channels_last data off every 16-byte boundary."""
    generator = torch.Generator().manual_seed(seed)
    R, C, h, w = shape
    if layout == "sliced":
        x = torch.randn((R, C, 2 * h, w + 3), generator=generator)[:, :, ::2, 3:]
    elif layout == "permuted":
        x = torch.randn((w, C, R, h), generator=generator).permute(2, 1, 3, 0)
    elif layout == "offset":
        flat = torch.randn(R * C * h * w + 1, generator=generator).to(DEVICE, dtype)[1:]
        return flat.reshape(R, h, w, C).permute(0, 3, 1, 2)
    else:
        x = torch.randn(shape, generator=generator)
        x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    return x.to(DEVICE, dtype)


def rounding(dtype: torch.dtype, backend: str) -> float:
    """What one rounding of a result and a few of float32 may cost, relative to the result. Triton's
    interpreter truncates to bfloat16."""
    truncated = backend == "triton" and DEVICE == "cpu" and dtype == torch.bfloat16
    return {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] * (1 + truncated)
