"""upsample_add and its backward by the C++ kernels in csrc/cpu/upsample_add.cpp."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels import _grid
from dmtl.kernels._native import CPU

SUPPORT = CPU.support()


def upsample_add(tokens, skip, reduction) -> Tensor:
    return _grid.upsample_add(CPU, tokens, skip, reduction)


def upsample_add_backward(grad, reduction) -> Tensor:
    return _grid.upsample_add_backward(CPU, grad, reduction)
