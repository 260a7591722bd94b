"""Parts shared by the backends' modules for operators on tokens."""

from __future__ import annotations

import torch
from torch import Tensor

WIDEST_BF16 = 256
"""Channels up to which the C++ kernels serve bfloat16 on a processor with AMX. The library uses its tiles,
which multiply bfloat16 several times as fast as AVX-512 BF16. That should pay for the library's separate
passes if the products are large; this was not measured. Without AMX, the kernels were at least as fast at 64
to 512 channels."""


def why_not_bf16(x: Tensor) -> list[str]:
    """Return the reason to leave bfloat16 of many channels to the library on this processor."""
    if x.dtype != torch.bfloat16 or x.shape[-1] <= WIDEST_BF16 or not torch.cpu._is_amx_tile_supported():
        return []
    return [f"on a processor with AMX, the library computes bfloat16 of {x.shape[-1]} channels"]


def why_not_sizes(**sizes: int) -> list[str]:
    """Return reasons against sizes that are not multiples of 8."""
    return [f"{name} of {size} channels is not a multiple of 8" for name, size in sizes.items() if size % 8]


def dense(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Return the tensors by name, contiguous."""
    return {name: None if x is None else x.contiguous() for name, x in tensors.items()}
