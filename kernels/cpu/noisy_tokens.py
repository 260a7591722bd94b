"""noisy_tokens and its backward by the C++ kernels in csrc/cpu/noisy_tokens.cpp."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels import _grid
from dmtl.kernels._native import CPU

SUPPORT = CPU.support()


def noisy_tokens(x, bias, reduction) -> tuple[Tensor, Tensor]:
    return _grid.noisy_tokens(CPU, x, bias, reduction)


def noisy_tokens_backward(grad_skip, grad_tokens, bias_dim, reduction) -> tuple[Tensor, Tensor]:
    line = grad_skip.shape[3] // reduction
    return _grid.noisy_tokens_backward(CPU, grad_skip, grad_tokens, bias_dim, reduction, line)
