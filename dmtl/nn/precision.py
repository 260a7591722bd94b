"""Arithmetic precision: names of precisions, TF32 on and off, and mixed precision for the fused ops (under
`torch.autocast` they compute in its dtype, like torch's own products)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> dtype of stored values."""


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16: a GPU since Ampere, a CPU with AVX-512 BF16 or AMX.

    Otherwise PyTorch emulates bf16; a CPU with AVX2 then trains about ten times slower than in fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def training_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" to "bf16" if the device has instructions for it, else "fp32"; keep other names."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else "fp32"


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in torch's float32 products and convolutions within this context; without effect
    on a CPU."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        products.allow_tf32 = convolutions.allow_tf32 = allowed
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@overload
def cast(x: Tensor) -> Tensor: ...


@overload
def cast(x: None) -> None: ...


def cast(x: Tensor | None) -> Tensor | None:
    """Cast x to autocast's dtype if autocast is on for its device."""
    if x is None or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def cast_all(xs: Sequence[Tensor]) -> list[Tensor]:
    """Apply `cast` to each."""
    return [cast(x) for x in xs]
