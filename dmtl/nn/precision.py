"""What arithmetic is done in: names of precisions, TF32 on and off, and mixed precision for the fused ops
(under `torch.autocast` they compute in its dtype, like torch's own products)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> dtype of what is stored in it."""


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16: a GPU since Ampere, a CPU with AVX-512 BF16 or AMX.

    Without them PyTorch emulates bf16; a CPU with AVX2 then trains about ten times more slowly than in fp32.
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
    """Context in which torch's products and convolutions of float32 may use TF32, or may not; without effect
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
    """x in autocast's dtype where autocast is on for its device, else as it is."""
    if x is None or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def cast_all(xs: Sequence[Tensor]) -> list[Tensor]:
    """`cast` of each."""
    return [cast(x) for x in xs]
