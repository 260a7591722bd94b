"""What the backends' modules for the ops on tokens share."""

from __future__ import annotations

import torch
from torch import Tensor

WIDEST_BF16 = 256
"""Channels up to which the C++ kernels, which multiply in float32, beat the library's bfloat16 products on a
processor that has such products itself. (Measured on two Zen 5 cores: a training step at 96 channels is 1.1
times as fast with ours; token_mlp on 5 x 256 tokens of 512 channels takes 13.5 ms against the library's
7.2.)"""


def why_not_bf16(x: Tensor) -> list[str]:
    """Return the reason to leave bfloat16 of many channels to the library on this processor."""
    if x.dtype != torch.bfloat16 or x.shape[-1] <= WIDEST_BF16 or not torch.cpu._is_avx512_bf16_supported():
        return []
    return [
        f"bfloat16 of {x.shape[-1]} channels is faster by the library on a processor that multiplies bfloat16"
    ]


def why_not_sizes(**sizes: int) -> list[str]:
    """Return reasons against sizes that are not multiples of 8."""
    return [f"{name} of {size} channels is not a multiple of 8" for name, size in sizes.items() if size % 8]


def dense(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Return the tensors by name, contiguous."""
    return {name: None if x is None else x.contiguous() for name, x in tensors.items()}
