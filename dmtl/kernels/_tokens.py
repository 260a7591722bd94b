"""What the backends' modules for the ops on tokens share."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels._native import DTYPES

# float32 arithmetic on converted bfloat16 does not beat the library where the processor itself multiplies
# bfloat16 (13.5 against 7.2 ms for token_mlp on 5 x 256 tokens of 512 channels, two Zen 5 cores): bfloat16
# is left to it there.
CPU_DTYPES = tuple(d for d in DTYPES if d != torch.bfloat16 or not torch.cpu._is_avx512_bf16_supported())


def why_not_sizes(**sizes: int) -> list[str]:
    """Reasons against sizes that are no multiples of 8."""
    return [f"{name} of {size} channels is no multiple of 8" for name, size in sizes.items() if size % 8]


def dense(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    """The tensors by name, contiguous."""
    return {name: None if x is None else x.contiguous() for name, x in tensors.items()}
