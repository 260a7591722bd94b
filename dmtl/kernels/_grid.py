"""The native calls of the ops between maps and tokens. Kernels want maps in channels-last order and
contiguous tokens; everything else goes through a copy in that order."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels._native import Native
from dmtl.runtime.memory import empty


def empty_map(like: Tensor) -> Tensor:
    """A fresh channels-last map of the same shape."""
    if like.device.type == "cpu":
        return empty(like.shape, like.dtype, torch.channels_last)
    return torch.empty(
        tuple(like.shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def empty_tokens(x: Tensor, reduction: int) -> Tensor:
    """Fresh tokens [R, N, C] for a map [R, C, h, w]."""
    R, C, h, w = x.shape
    return torch.empty((R, (h // reduction) * (w // reduction), C), dtype=x.dtype, device=x.device)


def channels_last(x: Tensor) -> Tensor:
    """The map, or its copy, in that order and on a 16-byte boundary."""
    return _aligned(x.contiguous(memory_format=torch.channels_last))


def dense(x: Tensor) -> Tensor:
    """The tokens or bias, or a copy, contiguous and on a 16-byte boundary."""
    return _aligned(x.contiguous())


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 16 == 0 else x.clone()


def why_not_channels(channels: int) -> list[str]:
    """Reason of kernels that move 16 bytes at a time."""
    return [f"{channels} channels are no multiple of 8"] if channels % 8 else []


def sizes(x: Tensor, reduction: int) -> dict[str, int]:
    """The fields that every parameter struct of these kernels has."""
    R, C, h, w = x.shape
    return dict(rows=R, height=h, width=w, channels=C, reduction=reduction)


def noisy_tokens(native: Native, x: Tensor, bias: Tensor | None, reduction: int) -> tuple[Tensor, Tensor]:
    x = channels_last(x)
    bias = None if bias is None else dense(bias)
    skip, tokens = None if bias is None else empty_map(x), empty_tokens(x, reduction)
    native.call(
        "noisy_tokens", x,
        skip=skip, tokens=tokens, x=x, bias=bias,
        bias_stride=x.shape[1] if bias is not None and bias.dim() == 2 else 0, **sizes(x, reduction),
    )  # fmt: skip
    return x.new_empty(0) if skip is None else skip, tokens


def noisy_tokens_backward(
    native: Native,
    grad_skip: Tensor,
    grad_tokens: Tensor,
    bias_dim: int,
    reduction: int,
    tokens_per_part: int,
) -> tuple[Tensor, Tensor]:
    """tokens_per_part: how many tokens (with their pixels) the kernel adds up in a partial sum of d_bias."""
    grad_skip, grad_tokens = channels_last(grad_skip), dense(grad_tokens)
    R, N, C = grad_tokens.shape
    parts = -(-N // max(tokens_per_part, 1))
    d_x = empty_map(grad_skip)
    d_bias = grad_skip.new_empty({0: (0,), 1: (C,), 2: (R, C)}[bias_dim])
    scratch = torch.empty((R, parts, C) if bias_dim else 0, dtype=torch.float32, device=grad_skip.device)
    native.call(
        "noisy_tokens_backward", grad_skip,
        d_x=d_x, d_bias=d_bias if bias_dim else None, parts=scratch,
        grad_skip=grad_skip, grad_tokens=grad_tokens,
        tokens_per_part=tokens_per_part, bias_stride=C if bias_dim == 2 else 0, **sizes(grad_skip, reduction),
    )  # fmt: skip
    return d_x, d_bias


def upsample_add(native: Native, tokens: Tensor, skip: Tensor, reduction: int) -> Tensor:
    out, skip = empty_map(skip), channels_last(skip)
    native.call(
        "upsample_add", skip,
        out=out, tokens=dense(tokens), skip=skip, **sizes(skip, reduction),
    )  # fmt: skip
    return out


def upsample_add_backward(native: Native, grad: Tensor, reduction: int) -> Tensor:
    grad = channels_last(grad)
    d_tokens = empty_tokens(grad, reduction)
    native.call("upsample_add_backward", grad, d_tokens=d_tokens, grad=grad, **sizes(grad, reduction))
    return d_tokens
