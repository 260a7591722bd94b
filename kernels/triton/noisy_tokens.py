"""Compute noisy_tokens and its backward in Triton.

A program processes TOKENS tokens with all pixels of their blocks, for CHANNELS channels (the innermost
dimension). Floor: the map is read and written once (and the tokens); without a bias only the centres are
read, a quarter of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.grid import aligned_map, aligned_tokens
from dmtl.kernels.triton._grid import CONFIGS, SUPPORT, compilation, config_for, options, tiles
from dmtl.ops.grid import REDUCTIONS, empty_map, empty_tokens
from dmtl.ops.noisy_tokens import bias_shape

__all__ = ["CONFIGS", "SUPPORT", "compilations", "noisy_tokens", "noisy_tokens_backward"]

_SUM_ROWS = 16  # number of partial sums of d_bias that are added at a time


@triton.constexpr_function
def _in_centre(dy, dx, reduction):
    """Return whether a token's mean includes this pixel of its block."""
    first, count = (1 if reduction == 4 else 0), min(reduction, 2)
    return first <= dy < first + count and first <= dx < first + count


@triton.jit
def _first_pixel(token, grid_w, REDUCTION: tl.constexpr):
    """Return the upper left pixel of the tokens' blocks; tokens and pixels are numbered over all rows."""
    line = token // grid_w
    return line * REDUCTION * (grid_w * REDUCTION) + token % grid_w * REDUCTION


@triton.jit
def _noisy_tokens_kernel(
    skip_ptr, tokens_ptr, x_ptr, bias_ptr, tokens, tokens_per_row, bias_stride, grid_w, channels,
    REDUCTION: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    SHARE: tl.constexpr = 1.0 if REDUCTION == 1 else 0.25
    BIAS: tl.constexpr = bias_ptr is not None
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = (token < tokens) & (c < channels)
    pixel = _first_pixel(token, grid_w, REDUCTION)
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    if BIAS:
        at = token // tokens_per_row * bias_stride + c
        bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for dy in tl.static_range(REDUCTION):
        for dx in tl.static_range(REDUCTION):
            if BIAS or _in_centre(dy, dx, REDUCTION):
                at = (pixel + dy * (grid_w * REDUCTION) + dx) * channels + c
                value = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
                if _in_centre(dy, dx, REDUCTION):
                    total += value
                if BIAS:
                    tl.store(skip_ptr + at, (value + bias).to(skip_ptr.dtype.element_ty), mask=inside)
    mean = total * SHARE
    if BIAS:
        mean += bias
    tl.store(tokens_ptr + token * channels + c, mean.to(tokens_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _noisy_tokens_backward_kernel(
    d_x_ptr, parts_ptr, grad_skip_ptr, grad_tokens_ptr, tokens_per_row, parts_per_row, grid_w, channels,
    REDUCTION: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    SHARE: tl.constexpr = 1.0 if REDUCTION == 1 else 0.25
    part = tl.program_id(0).to(tl.int64)
    in_row = (part % parts_per_row * TOKENS + tl.arange(0, TOKENS))[:, None]
    token = part // parts_per_row * tokens_per_row + in_row
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = (in_row < tokens_per_row) & (c < channels)
    pixel = _first_pixel(token, grid_w, REDUCTION)
    grad = tl.load(grad_tokens_ptr + token * channels + c, mask=inside, other=0.0).to(tl.float32)
    grad *= SHARE
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for dy in tl.static_range(REDUCTION):
        for dx in tl.static_range(REDUCTION):
            at = (pixel + dy * (grid_w * REDUCTION) + dx) * channels + c
            value = tl.load(grad_skip_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if _in_centre(dy, dx, REDUCTION):
                value += grad
            total += value
            tl.store(d_x_ptr + at, value.to(d_x_ptr.dtype.element_ty), mask=inside)
    if parts_ptr is not None:
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        tl.store(parts_ptr + part * channels + c, tl.sum(total, 0), mask=c < channels)


@triton.jit
def _sum_parts_kernel(out_ptr, parts_ptr, count, channels, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """Compute out[g] = sum of the parts [g * count, (g + 1) * count), always in the same order."""
    group = tl.program_id(0).to(tl.int64)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for start in range(0, count, TOKENS):
        part = (start + tl.arange(0, TOKENS))[:, None]
        inside = (part < count) & (c < channels)
        total += tl.load(parts_ptr + (group * count + part) * channels + c, mask=inside, other=0.0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(out_ptr + group * channels + c, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=c < channels)


def noisy_tokens(x, bias, reduction) -> tuple[Tensor, Tensor]:
    x = aligned_map(x)
    skip = None if bias is None else empty_map(x)
    tokens = empty_tokens(x, reduction)
    if tokens.numel() > 0:
        R, N, C = tokens.shape
        config = config_for(C)
        bias = None if bias is None else aligned_tokens(bias)
        stride = C if bias is not None and bias.dim() == 2 else 0
        with torch.cuda.device_of(x):
            _noisy_tokens_kernel[tiles(config, R * N, C)](
                skip, tokens, x, bias, R * N, N, stride, x.shape[3] // reduction, C,
                REDUCTION=reduction, **config,
            )  # fmt: skip
    return x.new_empty(0) if skip is None else skip, tokens


def noisy_tokens_backward(grad_skip, grad_tokens, bias_dim, reduction) -> tuple[Tensor, Tensor]:
    grad_skip, grad_tokens = aligned_map(grad_skip), aligned_tokens(grad_tokens)
    R, N, C = grad_tokens.shape
    d_x, d_bias = empty_map(grad_skip), grad_skip.new_zeros(bias_shape(grad_skip, bias_dim))
    if d_x.numel() == 0:
        return d_x, d_bias
    config = config_for(C)
    per_row, columns = tiles(config, N, C)
    parts = torch.empty((R, per_row, C), dtype=torch.float32, device=d_x.device) if bias_dim else None
    with torch.cuda.device_of(d_x):
        _noisy_tokens_backward_kernel[(R * per_row, columns)](
            d_x, parts, grad_skip, grad_tokens, N, per_row, d_x.shape[3] // reduction, C,
            REDUCTION=reduction, **config,
        )  # fmt: skip
        if bias_dim:
            groups = d_bias.numel() // C
            _sum_parts_kernel[(groups, columns)](
                d_bias, parts, R * per_row // groups, C,
                TOKENS=_SUM_ROWS, CHANNELS=config["CHANNELS"], **options(config),
            )  # fmt: skip
    return d_x, d_bias


def compilations() -> list[tuple]:
    """Return every form of the kernels that a call may compile (`_launch.compilation`)."""
    found = []
    for dtype in SUPPORT.dtypes:
        for config in CONFIGS:
            summing = config | {"TOKENS": _SUM_ROWS}
            found.append(compilation(_sum_parts_kernel, dtype, summing, {}, {"parts_ptr": "*fp32"}))
            for reduction in REDUCTIONS:
                given = {"REDUCTION": reduction}
                for absent in ({}, {"skip_ptr": None, "bias_ptr": None}):
                    found.append(compilation(_noisy_tokens_kernel, dtype, config, given, absent))
                for parts in ("*fp32", None):
                    pointers = {"parts_ptr": parts}
                    found.append(compilation(_noisy_tokens_backward_kernel, dtype, config, given, pointers))
    return found
