"""Call native kernels of operators between maps and tokens.

Kernels want maps in channels-last order and contiguous tokens; everything else goes through a copy in that
order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmtl.kernels.native import Native
from dmtl.ops.grid import empty_tokens
from dmtl.ops.noisy_tokens import bias_shape
from dmtl.runtime.memory import empty


def _empty_map(like: Tensor) -> Tensor:
    """Allocate a channels-last map of the same shape, from the pool in use."""
    return empty(like.shape, like.dtype, torch.channels_last, like.device)


def aligned_map(x: Tensor) -> Tensor:
    """Return the map, or a copy, in that order and on a 16-byte boundary."""
    return _aligned(x.contiguous(memory_format=torch.channels_last))


def aligned_tokens(x: Tensor) -> Tensor:
    """Return the tokens or bias, or a copy, contiguous and on a 16-byte boundary."""
    return _aligned(x.contiguous())


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 16 == 0 else x.clone()


def sizes(x: Tensor, reduction: int) -> dict[str, int]:
    """Return the fields that every parameter struct of these kernels has."""
    R, C, h, w = x.shape
    return dict(rows=R, height=h, width=w, channels=C, reduction=reduction)


def noisy_tokens(native: Native, x: Tensor, bias: Tensor | None, reduction: int) -> tuple[Tensor, Tensor]:
    x = aligned_map(x)
    bias = None if bias is None else aligned_tokens(bias)
    skip, tokens = None if bias is None else _empty_map(x), empty_tokens(x, reduction)
    native.call(
        "noisy_tokens", x,
        skip=skip, tokens=tokens, x=x, bias=bias,
        bias_stride=x.shape[1] if bias is not None and bias.dim() == 2 else 0, **sizes(x, reduction),
    )  # fmt: skip
    return x.new_empty(0) if skip is None else skip, tokens


def noisy_tokens_backward(
    native: Native,
    part_of: Callable[[Tensor, int], int],
    grad_skip: Tensor,
    grad_tokens: Tensor,
    bias_dim: int,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """Call the kernel of the backward pass.

    part_of(grad_skip, reduction) returns how many tokens (with their pixels) the kernel adds up in a partial
    sum of d_bias.
    """
    grad_skip, grad_tokens = aligned_map(grad_skip), aligned_tokens(grad_tokens)
    R, N, C = grad_tokens.shape
    tokens_per_part = part_of(grad_skip, reduction)
    parts = -(-N // max(tokens_per_part, 1))
    d_x = _empty_map(grad_skip)
    d_bias = grad_skip.new_empty(bias_shape(grad_skip, bias_dim))
    scratch = torch.empty((R, parts, C) if bias_dim else 0, dtype=torch.float32, device=grad_skip.device)
    native.call(
        "noisy_tokens_backward", grad_skip,
        d_x=d_x, d_bias=d_bias if bias_dim else None, parts=scratch,
        grad_skip=grad_skip, grad_tokens=grad_tokens,
        tokens_per_part=tokens_per_part, bias_stride=C if bias_dim == 2 else 0, **sizes(grad_skip, reduction),
    )  # fmt: skip
    return d_x, d_bias


def upsample_add(native: Native, tokens: Tensor, skip: Tensor, reduction: int) -> Tensor:
    out, skip = _empty_map(skip), aligned_map(skip)
    native.call(
        "upsample_add", skip,
        out=out, tokens=aligned_tokens(tokens), skip=skip, **sizes(skip, reduction),
    )  # fmt: skip
    return out


def upsample_add_backward(native: Native, grad: Tensor, reduction: int) -> Tensor:
    grad = aligned_map(grad)
    d_tokens = empty_tokens(grad, reduction)
    native.call("upsample_add_backward", grad, d_tokens=d_tokens, grad=grad, **sizes(grad, reduction))
    return d_tokens
