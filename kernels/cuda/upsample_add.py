"""upsample_add and its backward by the CUDA kernels in kernels/cuda/upsample_add.cu."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels import _grid
from dmtl.kernels._native import CUDA

SUPPORT = CUDA.support(
    shapes=lambda tokens, skip, reduction: _grid.why_not_channels(skip.shape[1]),
    backward_shapes=lambda grad, reduction: _grid.why_not_channels(grad.shape[1]),
)


def upsample_add(tokens, skip, reduction) -> Tensor:
    return _grid.upsample_add(CUDA, tokens, skip, reduction)


def upsample_add_backward(grad, reduction) -> Tensor:
    return _grid.upsample_add_backward(CUDA, grad, reduction)
