"""Compute decode_map in Triton.

The 1x1 head is a GEMM over pixels that gives float32 logits at low resolution. Then each program computes a
piece of a row of the map: it interpolates class after class and only keeps what the decoding needs.

Floor at one image, 21 classes: 4 MB of bf16 feature read, 2 MB of class ids written, 1.5 us at 4 TB/s; two
launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.triton._launch import POINTERS, compilation, support
from dmtl.ops.arithmetic import SHORTEST
from dmtl.ops.decode_map import CHANNELS, empty_output

SUPPORT = support(products=True)
HALF = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
SINGLE = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 4, "num_stages": 3}
MAP = {"BLOCK": 256, "num_warps": 4, "num_stages": 1}
CONFIGS = [HALF, SINGLE, MAP]
_SHORTEST_SQUARE = tl.constexpr(SHORTEST**2)


@triton.jit
def _head_kernel(
    logits_ptr, x_ptr, weight_ptr, bias_ptr, pixels, cells, channels, classes,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute logits [rows, classes, cells], float32, of channels-last features [pixels, channels]."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_ptr += pixel.to(tl.int64)[:, None] * channels
    weight_ptr += n[None, :] * channels
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, channels, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        left = c < channels
        a = tl.load(x_ptr + c[None, :], mask=(pixel < pixels)[:, None] & left[None, :], other=0.0)
        b = tl.load(weight_ptr + c[:, None], mask=left[:, None] & (n < classes)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n < classes, other=0.0).to(tl.float32)[None, :]
    at = ((pixel // cells).to(tl.int64) * classes * cells + pixel % cells)[:, None] + (n * cells)[None, :]
    tl.store(logits_ptr + at, acc, mask=(pixel < pixels)[:, None] & (n < classes)[None, :])


@triton.jit
def _between(x, size, FACTOR: tl.constexpr):
    """Return the two logits between which map pixels are, and their position from the first to the second.

    See csrc/include/dmtl/decode_map.h.
    """
    shifted = x - FACTOR // 2 + FACTOR
    low = shifted // FACTOR - 1
    way = (2 * (shifted % FACTOR) + (1 - FACTOR % 2)).to(tl.float32) / (2 * FACTOR)
    return tl.minimum(tl.maximum(low, 0), size - 1), tl.minimum(low + 1, size - 1), way


@triton.jit
def _logit(ptr, upper, lower, left, right, down, across):
    """Return the interpolated value: first between the rows, then along them."""
    a = tl.load(ptr + upper + left).to(tl.float32)
    b = tl.load(ptr + upper + right).to(tl.float32)
    a += down * (tl.load(ptr + lower + left).to(tl.float32) - a)
    b += down * (tl.load(ptr + lower + right).to(tl.float32) - b)
    return a + across * (b - a)


@triton.jit
def _map_kernel(
    out_ptr, logits_ptr, stride_n, stride_c, stride_y, stride_x, h, w, classes, height, width,
    KIND: tl.constexpr, FACTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.program_id(1) + tl.zeros_like(x)
    row = tl.program_id(2).to(tl.int64)
    inside = x < width
    top, bottom, down = _between(y, h, FACTOR)
    first, second, across = _between(tl.minimum(x, width - 1), w, FACTOR)
    upper, lower = top * stride_y, bottom * stride_y
    left, right = first * stride_x, second * stride_x
    logits_ptr += row * stride_n
    u = _logit(logits_ptr, upper, lower, left, right, down, across)
    at = (row * height + tl.program_id(1)) * width + x
    if KIND == "argmax":
        best = tl.zeros_like(x)
        for c in range(1, classes):
            v = _logit(logits_ptr + c * stride_c, upper, lower, left, right, down, across)
            leads = (v > u) | ((v != v) & (u == u))
            u = tl.where(leads, v, u)
            best = tl.where(leads, c, best)
        tl.store(out_ptr + at, best.to(tl.int64), mask=inside)
    elif KIND == "unit":
        v = _logit(logits_ptr + stride_c, upper, lower, left, right, down, across)
        z = _logit(logits_ptr + 2 * stride_c, upper, lower, left, right, down, across)
        squares = u * u + v * v + z * z
        scale = tl.rsqrt(tl.where(squares < _SHORTEST_SQUARE, _SHORTEST_SQUARE, squares))
        plane = tl.zeros((), tl.int64) + height * width
        out_ptr += at + 2 * row * plane
        tl.store(out_ptr, u * scale, mask=inside)
        tl.store(out_ptr + plane, v * scale, mask=inside)
        tl.store(out_ptr + 2 * plane, z * scale, mask=inside)
    else:
        if KIND == "softmax":
            u = _logit(logits_ptr + stride_c, upper, lower, left, right, down, across) - u
        if KIND == "exp":
            u = tl.exp(u)
        elif KIND != "value":
            u = 1.0 / (1.0 + tl.exp(-u))
        tl.store(out_ptr + at, u, mask=inside)


def decode_map(x, weight, bias, kind, height, width, factor) -> Tensor:
    out = empty_output(x, kind, height, width)
    if not out.numel():
        return out
    with torch.cuda.device_of(x):
        logits = (
            x
            if weight is None
            else _logits(x, weight.contiguous(), None if bias is None else bias.contiguous())
        )
        grid = (triton.cdiv(width, MAP["BLOCK"]), height, x.shape[0])
        stride_n, stride_c, stride_y, stride_x = logits.stride()
        _map_kernel[grid](
            out, logits, stride_n, stride_c, stride_y, stride_x, *logits.shape[2:], logits.shape[1], height,
            width, KIND=kind, FACTOR=factor, **MAP,
        )  # fmt: skip
    return out


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (rows, channels, h, w), classes = x.shape, weight.shape[0]
    logits = x.new_empty((rows, classes, h, w), dtype=torch.float32)
    chosen = SINGLE if x.dtype == torch.float32 else HALF
    grid = (triton.cdiv(rows * h * w, chosen["BLOCK_M"]), triton.cdiv(classes, chosen["BLOCK_N"]))
    _head_kernel[grid](
        logits, x.contiguous(memory_format=torch.channels_last), weight, bias, rows * h * w, h * w,
        channels, classes, BIAS=bias is not None, **chosen,
    )  # fmt: skip
    return logits


def compilations() -> list[tuple]:
    """Return every form of the kernels, for upsampling by 8 and by another factor (`_launch.compilation`)."""
    found = []
    for pointer in POINTERS.values():
        for bias in ({"BIAS": True}, {"BIAS": False, "bias_ptr": None}):
            kinds = dict(logits_ptr="*fp32", channels="i32:16")
            chosen = SINGLE if pointer == "*fp32" else HALF
            found.append(compilation(_head_kernel, chosen, bias, kinds, pointer))
        for kind in CHANNELS:
            kinds = dict(out_ptr="*i64" if kind == "argmax" else "*fp32", logits_ptr=pointer)
            found += [compilation(_map_kernel, MAP, dict(KIND=kind, FACTOR=f), kinds) for f in (8, 3)]
    return found
