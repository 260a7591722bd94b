"""Compute conv3x3 and its data gradient in Triton.

This is an implicit GEMM over channels-last maps, with up to 16 tasks in one launch.

A program computes BLOCK_M pixels x BLOCK_N output channels of one task. The reduction runs over (tap,
channel) with the channel innermost, so that every load reads consecutive channels of one shifted pixel. Bias,
tap biases, residual and ReLU are applied to the accumulator. Both products read the weights as they are
([K, 3, 3, C]): the data gradient uses the taps in reverse order and reduces over K, so weights are never
flipped or transposed. torch computes the weight gradient.

The pixels of a program are consecutive ones of the task, or a box of one map that is BLOCK_W wide. The copy
engine (TMA, sm_90) fetches a box, shifted by the tap, and fills what is outside the map with zeros: no masks
and no addresses of pixels. The pixels are the right operand of the product, because Triton reads only the
right one from shared memory, where the copy engine puts it; the left one is first loaded into registers.

There is one launch for all tasks, because a task with few rows does not fill the device, and the tails of
separate launches add up: for counts 9, 0, 7, 3, 5 of 32x32 pixels on 132 SMs, separate launches need 8 rounds
of tiles, one launch needs 6. The row counts of the tasks are kernel arguments, so nothing is copied to the
device.

The first call of a signature times all configurations, and cuDNN. cuDNN writes the convolution of each task
into its rows of the result; one launch of this kernel then adds biases and ReLU.

Floor (H200, bf16): 19.3 GFLOP for a map 512 -> 512 at 64x64, 24.5 us at the 788 TFLOP/s that a large matrix
product reaches; 1,500 FLOP per byte, so memory is not the limit. Not timed there yet.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from dmtl.kernels.grid import aligned_map
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


def _config(m: int, n: int, k: int, warps: int, stages: int, box: int = 0) -> dict[str, int]:
    return dict(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, BLOCK_W=box, num_warps=warps, num_stages=stages)


# Configurations by dtype; the first one is used if nothing may be measured.
CONFIGS = {
    torch.float32: [_config(128, 128, 16, 8, 3), _config(64, 64, 16, 8, 2)],
    torch.bfloat16: [_config(128, 128, 64, 8, 3), _config(128, 256, 32, 8, 4), _config(64, 128, 64, 4, 4)],
}
CONFIGS[torch.float16] = CONFIGS[torch.bfloat16]
# More of them for 16-bit types on devices with this much shared memory, all of which have a copy engine.
LARGE_BYTES = 227 * 1024
LARGE = [
    _config(128, 256, 64, 8, 3),
    _config(128, 128, 64, 8, 4, box=16),
    _config(256, 128, 64, 8, 4, box=16),
]
FINISHING = CONFIGS[torch.bfloat16][-1]  # adds the rest to what cuDNN wrote
_fastest = Fastest(name="conv3x3 in Triton")
_MEASURE = not INTERPRETED  # times in the interpreter are meaningless


@triton.jit
def _inside(y, x, dy, dx, height, width):
    """Return whether the pixel that is shifted by a tap is inside the image."""
    return (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)


@triton.jit
def _tile(ptr, valid, n, pixel, channels):
    """Load channels n of these pixels, counted from the one at ptr, as float32."""
    at = n[:, None] + pixel[None, :] * channels
    return tl.load(ptr + at, mask=(n < channels)[:, None] & valid[None, :], other=0.0).to(tl.float32)


# One binary for maps of all sizes: otherwise Triton would compile again for sizes that are 1 or multiples of
# 16. `maps` is a pointer, or with BLOCK_W a descriptor.
@triton.jit(do_not_specialize=["height", "width", "groups_in", "groups_out"])
def _conv3x3_kernel(
    out_ptr, maps, residual_ptr, weight_ptrs, bias_ptrs, tap_ptrs, counts, height, width, groups_in,
    groups_out,
    TASKS: tl.constexpr, BIAS: tl.constexpr, TAPS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BACKWARD: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    c_in = groups_in * 8  # so the compiler knows that channels come in vectors of 16 bytes
    c_out = groups_out * 8
    columns = tl.cdiv(c_out, BLOCK_N)
    tile = tl.program_id(0) // columns  # neighbouring programs share the same pixels
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    if BLOCK_W:
        BLOCK_H: tl.constexpr = BLOCK_M // BLOCK_W
        across = tl.cdiv(width, BLOCK_W)
        boxes = tl.cdiv(height, BLOCK_H) * across  # of one map

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
        tiles = counts[task] // 16 * boxes if BLOCK_W else tl.cdiv(pixels, BLOCK_M)
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

    # Where are its pixels? The first one is at tile_begin, in 64 bits; offsets from there need only 32.
    m = tl.arange(0, BLOCK_M)
    if BLOCK_W:
        r = tile // boxes
        top = tile % boxes // across * BLOCK_H
        left = tile % across * BLOCK_W
        y = top + m // BLOCK_W
        x = left + m % BLOCK_W
        valid = (y < height) & (x < width)
        tile_begin = (r.to(tl.int64) * height + top) * width + left
        pixel = m // BLOCK_W * width + m % BLOCK_W
    else:
        place = tile_in_task * BLOCK_M + m
        y = place // width % height
        x = place % width
        valid = place < size
        tile_begin = task_begin + tile_in_task * BLOCK_M
        pixel = m
        maps += tile_begin * c_in
    k = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(c_in, BLOCK_K)
    # 16-bit sums start with the residual, and float32 sums end with it: otherwise registers would spill.
    if RESIDUAL and out_ptr.dtype.element_ty != tl.float32:
        acc = _tile(residual_ptr + tile_begin * c_out, valid, n, pixel, c_out)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(9 * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + k
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        if BACKWARD:
            weight = (c[None, :] * 9 + (8 - tap)) * c_out + n[:, None]
        else:
            weight = (n[:, None] * 9 + tap) * c_in + c[None, :]
        if EVEN:
            a = tl.load(weight_ptr + weight)
        else:
            a = tl.load(weight_ptr + weight, mask=(n < c_out)[:, None] & (c < c_in)[None, :], other=0.0)
        if BLOCK_W:
            b = maps.load([r, top + dy, left + dx, step % blocks * BLOCK_K]).reshape(BLOCK_M, BLOCK_K).T
        else:
            inside = (valid & _inside(y, x, dy, dx, height, width))[None, :]
            if not EVEN:
                inside = inside & (c < c_in)[:, None]
            shifted = (pixel + dy * width + dx) * c_in
            b = tl.load(maps + shifted[None, :] + c[:, None], mask=inside, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")

    column = n < c_out
    if TAPS:  # nine more input channels, one for each tap: 1 if it is inside the image, else 0
        tap = tl.arange(0, 16)
        real = tap < 9
        value = tl.load(
            tap_ptr + n[:, None] * 9 + tap[None, :], mask=column[:, None] & real[None, :], other=0.0
        )
        reached = _inside(y[None, :], x[None, :], tap[:, None] // 3 - 1, tap[:, None] % 3 - 1, height, width)
        acc = tl.dot(value, (reached & real[:, None]).to(value.dtype), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=column, other=0.0).to(tl.float32)[:, None]
    if RESIDUAL and out_ptr.dtype.element_ty == tl.float32:
        acc += _tile(residual_ptr + tile_begin * c_out, valid, n, pixel, c_out)
    if RELU:
        acc = tl.where(acc < 0.0, 0.0, acc)  # NaN stays
    out_ptr += tile_begin * c_out
    offset = n[:, None] + pixel[None, :] * c_out
    tl.store(out_ptr + offset, acc.to(out_ptr.dtype.element_ty), mask=column[:, None] & valid[None, :])


def pack(weight: Tensor) -> Tensor:
    """Return the weight stored as [K, 3, 3, C]."""
    return weight.contiguous(memory_format=torch.channels_last)


def _launch(out, x, residual, weights, biases, taps, counts, relu, backward, config) -> None:
    R, C, h, w = x.shape
    block_m, block_n, block_k, block_w = (config[f"BLOCK_{axis}"] for axis in "MNKW")
    maps, tiles = x, sum(triton.cdiv(n * h * w, block_m) for n in counts)
    if block_w:
        box = [1, block_m // block_w, block_w, block_k]
        # Not x.stride(), which is arbitrary along axes of size 1.
        maps = TensorDescriptor(x, [R, h, w, C], [h * w * C, w * C, C, 1], box)
        tiles = R * triton.cdiv(h, box[1]) * triton.cdiv(w, box[2])
    with torch.cuda.device_of(x):
        _conv3x3_kernel[(tiles * triton.cdiv(out.shape[1], block_n),)](
            out, maps, residual, tuple(weights), tuple(biases) or None, tuple(taps) or None,
            # Triton would also compile again for counts that are 1 or multiples of 16. Encoded like this they
            # are neither (`do_not_specialize` does not support tuples).
            tuple(16 * n + 2 for n in counts), h, w, C // 8, out.shape[1] // 8,
            TASKS=len(weights), BIAS=bool(biases), TAPS=bool(taps), RESIDUAL=residual is not None, RELU=relu,
            BACKWARD=backward, EVEN=C % block_k == 0 and out.shape[1] % block_n == 0, **config,
        )  # fmt: skip


def _convolve(x, weights, biases, taps, counts, relu=False, backward=False, residual=None) -> Tensor:
    """Run the kernel on channels-last maps, with at most _MAX_TASKS tasks per launch."""
    channels = weights[0].shape[1 if backward else 0]
    x = aligned_map(x)
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
            _run(out[rows], x[rows], added, *per_task, relu, backward)
        begin = rows.stop
    return out


def _run(out, x, residual, *rest) -> None:
    """Compute in the fastest way for this signature; its first call times them all."""
    *_, backward = rest
    configs = _configs(x) if _MEASURE else CONFIGS[x.dtype][:1]
    ways = {str(config): partial(_launch, out, x, residual, *rest, config) for config in configs}
    if _MEASURE and not backward and x.dtype != torch.float32 and torch.backends.cudnn.is_available():
        ways["cuDNN"] = partial(_library, out, x, residual, *rest)
    kind = (x.device, x.dtype, *x.shape[1:], out.shape[1], out.shape[0].bit_length(), backward)
    ways[_fastest.choose((*kind, residual is not None), ways, x.device)]()


def _configs(x: Tensor) -> list[dict[str, int]]:
    """Return the configurations that x's dtype and device allow."""
    if x.dtype == torch.float32:
        return CONFIGS[x.dtype]
    properties = driver.active.utils.get_device_properties(x.device.index)
    return CONFIGS[x.dtype] + (LARGE if properties["max_shared_mem"] >= LARGE_BYTES else [])


def _library(out, x, residual, weights, biases, taps, counts, relu, backward) -> None:
    """Let cuDNN write the convolution of each task into its rows, and finish all of them in one launch.

    That launch has no input channels; its residual is the output of cuDNN.
    """
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, True
    for y, rows, weight in zip(out.split(counts), x.split(counts), weights, strict=True):
        if len(rows):
            torch.ops.aten.cudnn_convolution.out(rows, weight, [1, 1], [1, 1], [1, 1], 1, *flags, out=y)
    if residual is not None:
        out += residual
    if biases or taps or relu:
        _launch(out, x[:, :0], out, weights, biases, taps, counts, relu, backward, FINISHING)


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
    """Return every configuration that a call may compile, for five tasks (`_launch.compilation`)."""
    flags = [False, True]
    rests = list(itertools.product(flags, flags, flags))
    forms = {(bias, taps, False, relu, False) for bias, taps, relu in rests}
    forms |= {(True, False, True, True, False), (False, False, False, False, True)}
    finishing = {(bias, taps, True, relu, False) for bias, taps, relu in rests if bias or taps or relu}
    return [
        _form(dtype, config, *form, even)
        for dtype, configs in CONFIGS.items()
        for config in (configs if dtype == torch.float32 else configs + LARGE)
        for form in sorted(forms | finishing if config is FINISHING else forms)
        for even in flags
    ]


def _form(dtype, config, bias, taps, residual, relu, backward, even) -> tuple:
    flags = dict(BIAS=bias, TAPS=taps, RESIDUAL=residual, RELU=relu, BACKWARD=backward, EVEN=even)
    pointers = dict(bias_ptrs=bias, tap_ptrs=taps, residual_ptr=residual)
    constants = dict(TASKS=5) | flags | {name: None for name, given in pointers.items() if not given}
    m, k, w = (config[f"BLOCK_{axis}"] for axis in "MKW")
    pointer = POINTERS[dtype]
    kinds: dict = dict.fromkeys(("weight_ptrs", "bias_ptrs", "tap_ptrs"), (pointer,) * 5)
    maps = f"tensordesc<{pointer[1:]}{[1, m // w, w, k]}>" if w else pointer
    kinds |= {"counts": ("i32",) * 5, "maps": maps}
    arch = 90 if config in LARGE else 80
    return compilation(_conv3x3_kernel, config, constants, kinds, pointer, arch)
