"""Parts shared by the two noising operators.

These are per-row coefficients, the noise of a call, and outputs in the layout of an input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox
from .arithmetic import wide, wide_dtype


def per_row(table_S: Tensor, t_B: Tensor, like: Tensor) -> Tensor:
    """Return table[t] as [B, 1, ...], ready to multiply `like` in its arithmetic dtype."""
    return table_S[t_B].to(wide_dtype(like.dtype)).reshape(-1, *([1] * (like.dim() - 1)))


def drawn_noise(like: Tensor, noise: Tensor | None, key_B3: Tensor | None, step: int) -> Tensor | None:
    """Return the call's noise in the arithmetic dtype: as given, or drawn from the key; None without both."""
    if noise is not None:
        return noise.to(wide_dtype(like.dtype))
    if key_B3 is not None:
        return philox.normal(key_B3, tuple(like.shape[1:]), step).to(wide_dtype(like.dtype))
    return None


def stored_like(value: Tensor, like: Tensor) -> Tensor:
    """Round `value` to `like`'s dtype, in a fresh tensor with the strides that empty_like gives."""
    return torch.empty_like(like).copy_(value)


def scaled(grad: Tensor, t_B: Tensor, table_S: Tensor, needed: bool) -> Tensor:
    """Return table[t] * grad, or an empty tensor if it is not needed."""
    if not needed:
        return grad.new_empty(0)
    return stored_like(per_row(table_S, t_B, grad) * wide(grad), grad)
