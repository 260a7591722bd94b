"""Compute upsample_add and its backward in Triton.

Forward: a program computes all pixels of some cells, the squares between the centres of four neighbouring
tokens (cells at the border have a half or a quarter of the pixels). Backward: a program gathers the gradients
of some tokens from the pixels around them, in a fixed order. Floor: the map is read and written once;
backward, the gradient is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.grid import aligned_map, aligned_tokens
from dmtl.kernels.triton._grid import CONFIGS, SUPPORT, compilation, config_for, tiles
from dmtl.ops.grid import REDUCTIONS, empty_map, empty_tokens

__all__ = ["CONFIGS", "SUPPORT", "compilations", "upsample_add", "upsample_add_backward"]


@triton.constexpr_function
def _way(step, reduction):
    """Return the position of a cell's pixel between its first (0) and second (1) token."""
    return (2 * step + 1) / (2 * reduction) if reduction > 1 else 0.0


@triton.jit
def _lerp(a, b, way: tl.constexpr):
    return (1.0 - way) * a + way * b


@triton.jit
def _upsample_add_kernel(
    out_ptr, tokens_ptr, skip_ptr, cells, grid_h, grid_w, channels,
    REDUCTION: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = REDUCTION // 2  # at reduction 1, a cell is a pixel and its token
    MORE: tl.constexpr = 1 if REDUCTION > 1 else 0
    cell = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = (cell < cells) & (c < channels)
    j = cell % (grid_w + MORE)
    i = cell // (grid_w + MORE) % (grid_h + MORE)
    row = cell // ((grid_w + MORE) * (grid_h + MORE))
    upper = (row * grid_h + tl.maximum(i - MORE, 0)) * grid_w
    lower = (row * grid_h + tl.minimum(i, grid_h - 1)) * grid_w
    left, right = tl.maximum(j - MORE, 0), tl.minimum(j, grid_w - 1)
    a = tl.load(tokens_ptr + (upper + left) * channels + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(tokens_ptr + (upper + right) * channels + c, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(tokens_ptr + (lower + left) * channels + c, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(tokens_ptr + (lower + right) * channels + c, mask=inside, other=0.0).to(tl.float32)
    height, width = grid_h * REDUCTION, grid_w * REDUCTION
    for dy in tl.static_range(REDUCTION):
        at_left, at_right = _lerp(a, d, _way(dy, REDUCTION)), _lerp(b, e, _way(dy, REDUCTION))
        y = i * REDUCTION - HALF + dy
        for dx in tl.static_range(REDUCTION):
            x = j * REDUCTION - HALF + dx
            here = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            at = ((row * height + y) * width + x) * channels + c
            skip = tl.load(skip_ptr + at, mask=here, other=0.0).to(tl.float32)
            value = skip + _lerp(at_left, at_right, _way(dx, REDUCTION))
            tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def _share(pixel, token, grid, REDUCTION: tl.constexpr):
    """Return the weight of a pixel in a token that is at most one and a half blocks away, along one axis.

    It is linear in their distance, except that the outermost half of a block belongs only to its own token.
    """
    way = 2 * pixel + 1 - (2 * token + 1) * REDUCTION  # distance of their centres, in half pixels
    alone = ((token == 0) & (way < 0)) | ((token == grid - 1) & (way > 0))
    return tl.where(alone, 1.0, 1.0 - tl.abs(way).to(tl.float32) / (2 * REDUCTION))


@triton.jit
def _upsample_add_backward_kernel(
    d_tokens_ptr, grad_ptr, tokens, grid_h, grid_w, channels,
    REDUCTION: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = REDUCTION // 2
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = (token < tokens) & (c < channels)
    j, i, row = token % grid_w, token // grid_w % grid_h, token // (grid_w * grid_h)
    height, width = grid_h * REDUCTION, grid_w * REDUCTION
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for dy in range(-HALF, REDUCTION + HALF):
        y = i * REDUCTION + dy
        line = tl.zeros((TOKENS, CHANNELS), tl.float32)
        for dx in tl.static_range(-HALF, REDUCTION + HALF):
            x = j * REDUCTION + dx
            here = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            at = ((row * height + y) * width + x) * channels + c
            grad = tl.load(grad_ptr + at, mask=here, other=0.0).to(tl.float32)
            line += _share(x, j, grid_w, REDUCTION) * grad
        total += _share(y, i, grid_h, REDUCTION) * line
    tl.store(d_tokens_ptr + token * channels + c, total.to(d_tokens_ptr.dtype.element_ty), mask=inside)


def upsample_add(tokens, skip, reduction) -> Tensor:
    out, skip, tokens = empty_map(skip), aligned_map(skip), aligned_tokens(tokens)
    if out.numel() > 0:
        R, C, h, w = out.shape
        more = reduction > 1
        cells = R * (h // reduction + more) * (w // reduction + more)
        config = config_for(C)
        with torch.cuda.device_of(out):
            _upsample_add_kernel[tiles(config, cells, C)](
                out, tokens, skip, cells, h // reduction, w // reduction, C, REDUCTION=reduction, **config
            )
    return out


def upsample_add_backward(grad, reduction) -> Tensor:
    grad = aligned_map(grad)
    d_tokens = empty_tokens(grad, reduction)
    if d_tokens.numel() > 0:
        R, N, C = d_tokens.shape
        h, w = grad.shape[2:]
        config = config_for(C)
        with torch.cuda.device_of(grad):
            _upsample_add_backward_kernel[tiles(config, R * N, C)](
                d_tokens, grad, R * N, h // reduction, w // reduction, C, REDUCTION=reduction, **config
            )
    return d_tokens


def compilations() -> list[tuple]:
    """Return every form of the kernels that a call may compile (`_launch.compilation`)."""
    return [
        compilation(kernel, dtype, config, {"REDUCTION": reduction}, {})
        for kernel in (_upsample_add_kernel, _upsample_add_backward_kernel)
        for dtype in SUPPORT.dtypes
        for config in CONFIGS
        for reduction in REDUCTIONS
    ]
