"""Compute conv3x3 and its data gradient in Triton.

This is an implicit GEMM over channels-last maps, with all tasks in one launch.

A program computes BLOCK_M pixels x BLOCK_N output channels of one task. The reduction runs over (tap,
channel) with the channel innermost, so that every load reads consecutive channels of one shifted pixel. Bias,
tap biases, residual and ReLU are applied to the accumulator. Both products read the weights as they are
([K, 3, 3, C]): the data gradient uses the taps in reverse order and reduces over K, so weights are never
flipped or transposed. torch computes the weight gradient.

There is one launch for all tasks, because a task with few rows does not fill the device, and the tails of
separate launches add up (counts 9, 0, 7, 3, 5 of 32x32 pixels on 132 SMs: 8 rounds of tiles instead of 6).
The row counts of the tasks are kernel arguments, so nothing is copied to the device.

Floor (H200, bf16): 19.3 GFLOP for a map 512 -> 512 at 64x64, 24.5 us at the 788 TFLOP/s that a large matrix
product reaches; 1,500 FLOP per byte, so memory is not the limit. Not timed there yet: the automatic choice
measures this kernel and cuDNN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.triton._launch import INTERPRETED, POINTERS, compilation, support
from dmtl.ops.conv3x3 import SPEC, residual_gradient
from dmtl.ops.grid import empty_map
from dmtl.runtime.measure import Fastest

_MAX_TASKS = 16  # more tasks need further launches


def _odd_channels(weights: list[Tensor]) -> list[str]:
    K, C = weights[0].shape[:2]
    return [f"{C} and {K} channels are not multiples of 8"] if K % 8 or C % 8 else []


def _shapes(x, weights, biases, tap_biases, packed, counts, relu, residual) -> list[str]:
    usual = residual is None or (biases and relu and not tap_biases)
    return _odd_channels(weights) + ([] if usual else ["a residual needs biases, a ReLU and no tap biases"])


SUPPORT = support(
    _shapes,
    lambda grad, x, weights, *rest: _odd_channels(weights),
    products=True,
)


def _config(m: int, n: int, k: int, warps: int, stages: int) -> dict[str, int]:
    return dict(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, num_warps=warps, num_stages=stages)


# Configurations by dtype; the first one is used if nothing may be measured.
CONFIGS = {
    torch.float32: [_config(128, 128, 16, 8, 3), _config(64, 64, 32, 8, 3)],
    torch.bfloat16: [_config(128, 128, 64, 8, 3), _config(128, 256, 32, 8, 4), _config(64, 128, 64, 4, 4)],
}
CONFIGS[torch.float16] = CONFIGS[torch.bfloat16]
_fastest = Fastest(name="conv3x3 in Triton")
_MEASURE = not INTERPRETED  # times in the interpreter are meaningless


@triton.jit
def _inside(y, x, dy, dx, height, width):
    """Return whether the pixel that is shifted by a tap is inside the image."""
    return (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)


@triton.jit
def _tile(ptr, valid, n, channels):
    """Load columns n of a tile's pixels, the first of which is at ptr, as float32."""
    at = (tl.arange(0, valid.shape[0]) * channels)[:, None] + n[None, :]
    return tl.load(ptr + at, mask=valid[:, None] & (n < channels)[None, :], other=0.0).to(tl.float32)


# One binary for maps of all sizes: otherwise Triton would compile again for sizes that are 1 or multiples of
# 16.
@triton.jit(do_not_specialize=["height", "width", "groups_in", "groups_out"])
def _conv3x3_kernel(
    out_ptr, x_ptr, residual_ptr, weight_ptrs, bias_ptrs, tap_ptrs, counts, height, width, groups_in,
    groups_out,
    TASKS: tl.constexpr, BIAS: tl.constexpr, TAPS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BACKWARD: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    c_in = groups_in * 8  # so the compiler knows that channels come in vectors of 16 bytes
    c_out = groups_out * 8
    columns = tl.cdiv(c_out, BLOCK_N)
    tile = tl.program_id(0) // columns  # neighbouring programs share the same pixels
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)

    # Which task is this tile of?
    task_begin = tl.zeros((), tl.int64)  # index of the task's first pixel
    size = 0  # number of the task's pixels
    tile_in_task = 0
    weight_ptr = weight_ptrs[0]
    if BIAS:
        bias_ptr = bias_ptrs[0]
    if TAPS:
        tap_ptr = tap_ptrs[0]
    begin = tl.zeros((), tl.int64)
    first_tile = 0
    for task in tl.static_range(TASKS):
        pixels = counts[task] // 16 * (height * width)
        tiles = tl.cdiv(pixels, BLOCK_M)
        mine = (tile >= first_tile) & (tile < first_tile + tiles)
        task_begin = tl.where(mine, begin, task_begin)
        size = tl.where(mine, pixels, size)
        tile_in_task = tl.where(mine, tile - first_tile, tile_in_task)
        weight_ptr = tl.where(mine, weight_ptrs[task], weight_ptr)
        if BIAS:
            bias_ptr = tl.where(mine, bias_ptrs[task], bias_ptr)
        if TAPS:
            tap_ptr = tl.where(mine, tap_ptrs[task], tap_ptr)
        begin += pixels
        first_tile += tiles

    m = tile_in_task * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = m < size
    y = m // width % height
    x = m % width
    tile_begin = task_begin + tile_in_task * BLOCK_M  # 64 bits here; offsets inside a tile need only 32
    row = tl.arange(0, BLOCK_M) * c_in
    x_ptr += tile_begin * c_in
    k = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(c_in, BLOCK_K)
    # 16-bit sums start with the residual, and float32 sums end with it: otherwise registers would spill.
    if RESIDUAL and x_ptr.dtype.element_ty != tl.float32:
        acc = _tile(residual_ptr + tile_begin * c_out, valid, n, c_out)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(9 * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + k
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        inside = (valid & _inside(y, x, dy, dx, height, width))[:, None]
        if BACKWARD:
            weight = (c[:, None] * 9 + (8 - tap)) * c_out + n[None, :]
        else:
            weight = (n[None, :] * 9 + tap) * c_in + c[:, None]
        if EVEN:
            a = tl.load(
                x_ptr + (row + (dy * width + dx) * c_in)[:, None] + c[None, :], mask=inside, other=0.0
            )
            b = tl.load(weight_ptr + weight)
        else:
            real = c < c_in
            a = tl.load(x_ptr + (row + (dy * width + dx) * c_in)[:, None] + c[None, :],
                        mask=inside & real[None, :], other=0.0)  # fmt: skip
            b = tl.load(weight_ptr + weight, mask=real[:, None] & (n < c_out)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")

    column = n < c_out
    if TAPS:  # nine more input channels, one for each tap: 1 if it is inside the image, else 0
        tap = tl.arange(0, 16)
        reached = _inside(y[:, None], x[:, None], tap[None, :] // 3 - 1, tap[None, :] % 3 - 1, height, width)
        reached = reached & (tap < 9)[None, :]
        value = tl.load(
            tap_ptr + n[None, :] * 9 + tap[:, None], mask=(tap < 9)[:, None] & column[None, :], other=0.0
        )
        acc = tl.dot(reached.to(value.dtype), value, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=column, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL and x_ptr.dtype.element_ty == tl.float32:
        acc += _tile(residual_ptr + tile_begin * c_out, valid, n, c_out)
    if RELU:
        acc = tl.where(acc < 0.0, 0.0, acc)  # NaN stays
    out_ptr += tile_begin * c_out
    offset = (tl.arange(0, BLOCK_M) * c_out)[:, None] + n[None, :]
    tl.store(out_ptr + offset, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & column[None, :])


def pack(weight: Tensor) -> Tensor:
    """Return the weight stored as [K, 3, 3, C]."""
    return weight.contiguous(memory_format=torch.channels_last)


def _launch(out, x, residual, weights, biases, taps, counts, relu, backward, config) -> None:
    h, w = x.shape[2:]
    block_m, block_n, block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    grid = (sum(triton.cdiv(n * h * w, block_m) for n in counts) * triton.cdiv(out.shape[1], block_n),)
    with torch.cuda.device_of(x):
        _conv3x3_kernel[grid](
            out, x, residual, tuple(weights), tuple(biases) or None, tuple(taps) or None,
            # Triton would also compile again for counts that are 1 or multiples of 16. Encoded like this they
            # are neither (`do_not_specialize` does not support tuples).
            tuple(16 * n + 2 for n in counts), h, w, x.shape[1] // 8, out.shape[1] // 8,
            TASKS=len(weights), BIAS=bool(biases), TAPS=bool(taps), RESIDUAL=residual is not None, RELU=relu,
            BACKWARD=backward, EVEN=x.shape[1] % block_k == 0 and out.shape[1] % block_n == 0, **config,
        )  # fmt: skip


def _convolve(x, weights, biases, taps, counts, relu=False, backward=False, residual=None) -> Tensor:
    """Run the kernel on channels-last maps, with at most _MAX_TASKS tasks per launch."""
    channels = weights[0].shape[1 if backward else 0]
    x = x.contiguous(memory_format=torch.channels_last)
    out = empty_map(x, (x.shape[0], channels, *x.shape[2:]))
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    begin = 0
    for first in range(0, len(counts), _MAX_TASKS):
        some = slice(first, first + _MAX_TASKS)
        rows = slice(begin, begin + sum(counts[some]))
        if rows.stop > begin:
            per_task = weights[some], biases[some], taps[some], counts[some]
            added = None if residual is None else residual[rows]
            launch = partial(_launch, out[rows], x[rows], added, *per_task, relu, backward)
            launch(_choose_config(launch, out[rows], x, backward))
        begin = rows.stop
    return out


def _choose_config(launch: Callable[[dict], None], out: Tensor, x: Tensor, backward: bool) -> dict[str, int]:
    """Return the fastest configuration for calls of this signature, which the first one measures."""
    configs = {str(config): config for config in CONFIGS[x.dtype][: None if _MEASURE else 1]}
    kind = (x.device, x.dtype, *x.shape[1:], out.shape[1], out.shape[0].bit_length(), backward)
    return configs[_fastest.choose(kind, {name: partial(launch, c) for name, c in configs.items()}, x.device)]


def conv3x3(x, weights, biases, tap_biases, packed, counts, relu, residual) -> Tensor:
    stored = [pack(weight) for weight in (packed if _ours(packed, weights) else weights)]
    return _convolve(x, stored, _dense(biases), _dense(tap_biases), counts, relu, residual=residual)


def _ours(packed: list[Tensor], weights: list[Tensor]) -> bool:
    return bool(packed) and all(p.shape == w.shape for p, w in zip(packed, weights, strict=True))


def _dense(values: list[Tensor]) -> list[Tensor]:
    return [value.contiguous() for value in values]


def conv3x3_backward(
    grad, x, weights, out, counts, relu, need_x, need_weights, need_biases, need_taps, need_residual
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    g = torch.ops.aten.threshold_backward(grad, out, 0) if relu else grad
    d_x = x.new_empty(0)
    if need_x:
        d_x = _convolve(g, [pack(weight) for weight in weights], [], [], counts, backward=True)
    needs = False, need_weights, need_biases and need_taps, need_taps, False
    _, d_weights, d_biases, d_taps, _ = SPEC.backward.reference(g, x, weights, None, counts, False, *needs)
    if need_biases and not need_taps:  # one pass over all rows instead of a sum for each tap
        sums = g.sum((2, 3), dtype=torch.float32)
        d_biases = [rows.sum(0).to(g.dtype) for rows in sums.split(counts)]
    return d_x, d_weights, d_biases, d_taps, residual_gradient(g, grad, need_residual)


def compilations() -> list[tuple]:
    """Return every form of the kernel that a call may compile, for five tasks (`_launch.compilation`)."""
    flags = [False, True]
    forms = [(bias, taps, False, relu, False) for bias, taps, relu in itertools.product(flags, flags, flags)]
    forms += [(True, False, True, True, False), (False, False, False, False, True)]
    return [
        _form(dtype, config, *form, even)
        for dtype, configs in CONFIGS.items()
        for config in configs
        for form in forms
        for even in flags
    ]


def _form(dtype, config, bias, taps, residual, relu, backward, even) -> tuple:
    flags = dict(BIAS=bias, TAPS=taps, RESIDUAL=residual, RELU=relu, BACKWARD=backward, EVEN=even)
    pointers = dict(bias_ptrs=bias, tap_ptrs=taps, residual_ptr=residual)
    constants = dict(TASKS=5) | flags | {name: None for name, given in pointers.items() if not given}
    kinds = dict.fromkeys(("weight_ptrs", "bias_ptrs", "tap_ptrs"), (POINTERS[dtype],) * 5)
    return compilation(_conv3x3_kernel, config, constants, kinds | {"counts": ("i32",) * 5}, POINTERS[dtype])
