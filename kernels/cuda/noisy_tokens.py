"""noisy_tokens and its backward by the CUDA kernels in kernels/cuda/noisy_tokens.cu."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels import _grid
from dmtl.kernels._native import CUDA

SUPPORT = CUDA.support(
    shapes=lambda x, bias, reduction: _grid.why_not_channels(x.shape[1]),
    backward_shapes=lambda grad_skip, *_: _grid.why_not_channels(grad_skip.shape[1]),
)
_PIXELS_PER_PART = 128


def noisy_tokens(x, bias, reduction) -> tuple[Tensor, Tensor]:
    return _grid.noisy_tokens(CUDA, x, bias, reduction)


def noisy_tokens_backward(grad_skip, grad_tokens, bias_dim, reduction) -> tuple[Tensor, Tensor]:
    size = _PIXELS_PER_PART // reduction**2
    return _grid.noisy_tokens_backward(CUDA, grad_skip, grad_tokens, bias_dim, reduction, size)
