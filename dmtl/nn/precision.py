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
