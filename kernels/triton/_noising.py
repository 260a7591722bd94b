"""Triton kernels of the two noising operators and of their backward.

A program computes 4 * BLOCK elements of one row; with channels last, those of BLOCK_C neighbouring channels,
so that it accesses whole cache lines.
"""

import itertools

import torch
import triton
import triton.language as tl

from dmtl.kernels.noising import NoisingOps
from dmtl.kernels.triton._launch import INTERPRETED, POINTERS, compilation, support
from dmtl.kernels.triton._noise import draw, draw_apart

BLOCK = 4096 if INTERPRETED else 256  # in the interpreter, every program costs time
BLOCK_C = 64
SUPPORT = support()


@triton.jit(do_not_specialize=["step"])  # one compilation for all steps
def _noising_fwd_kernel(
    out_ptr, x_ptr, y_ptr, noise_ptr, key_ptr, t_ptr, coef_x_ptr, coef_y_ptr, coef_noise_ptr,
    count, table_size, step, stride_out, stride_x, stride_y, stride_noise,
    HAS_Y: tl.constexpr, GIVEN: tl.constexpr, DRAWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first * 4 + tl.arange(0, 4 * BLOCK)
    eps = element
    if DRAWN:
        block = (first + tl.arange(0, BLOCK)).to(tl.uint32)
        key = key_ptr + row * 3
        eps = draw(block, tl.load(key), tl.load(key + 1), tl.load(key + 2), step)
    _noised(
        out_ptr + row * stride_out, x_ptr + row * stride_x, y_ptr, row * stride_y, noise_ptr,
        row * stride_noise, tl.load(t_ptr + row), coef_x_ptr, coef_y_ptr, coef_noise_ptr, table_size,
        element, element < count, eps, HAS_Y, GIVEN, DRAWN,
    )  # fmt: skip


@triton.jit(do_not_specialize=["step"])
def _noising_last_kernel(
    out_ptr, x_ptr, y_ptr, noise_ptr, key_ptr, t_ptr, coef_x_ptr, coef_y_ptr, coef_noise_ptr,
    groups, channels, table_size, step, stride_out, stride_x, stride_y, stride_noise,
    HAS_Y: tl.constexpr, GIVEN: tl.constexpr, DRAWN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute `groups` of four pixels; a Philox block is the four pixels of one channel."""
    row = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(channels, BLOCK_C)
    index = tl.arange(0, BLOCK)
    channel = tl.program_id(0) % tiles * BLOCK_C + index % BLOCK_C
    group = tl.program_id(0) // tiles * (BLOCK // BLOCK_C) + index // BLOCK_C
    inside = (channel < channels) & (group < groups)
    offset = group.to(tl.int64) * 4 * channels + channel
    eps = (offset, offset, offset, offset)
    if DRAWN:
        key = key_ptr + row * 3
        block = (channel * groups + group).to(tl.uint32)
        eps = draw_apart(block, tl.load(key), tl.load(key + 1), tl.load(key + 2), step)
    for j in tl.static_range(4):
        _noised(
            out_ptr + row * stride_out, x_ptr + row * stride_x, y_ptr, row * stride_y, noise_ptr,
            row * stride_noise, tl.load(t_ptr + row), coef_x_ptr, coef_y_ptr, coef_noise_ptr, table_size,
            offset + j * channels, inside, eps[j], HAS_Y, GIVEN, DRAWN,
        )  # fmt: skip


@triton.jit
def _noised(
    out_ptr, x_ptr, y_ptr, y_row, noise_ptr, noise_row, t, coef_x_ptr, coef_y_ptr, coef_noise_ptr, table_size,
    offset, inside, eps, HAS_Y: tl.constexpr, GIVEN: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """Compute and store the elements at these offsets of a row. `eps` is their noise, if DRAWN."""
    valid = (t >= 0) & (t < table_size)  # an invalid index gives a row of NaN
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(coef_x_ptr + t, mask=valid, other=float("nan")) * x
    if HAS_Y:
        y = tl.load(y_ptr + y_row + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.fma(tl.zeros_like(y) + tl.load(coef_y_ptr + t, mask=valid, other=float("nan")), y, value)
    if GIVEN or DRAWN:
        scale = tl.load(coef_noise_ptr + t, mask=valid, other=float("nan"))
        if GIVEN:
            eps = tl.load(noise_ptr + noise_row + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(scale == 0.0, value, tl.fma(tl.zeros_like(eps) + scale, eps, value))
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scaling_kernel(out_ptr, grad_ptr, t_ptr, table_ptr, count, table_size, SIZE: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    t = tl.load(t_ptr + row)
    scale = tl.load(table_ptr + t, mask=(t >= 0) & (t < table_size), other=float("nan"))
    element = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = element < count
    grad = tl.load(grad_ptr + row * count + element, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * count + element, (scale * grad).to(out_ptr.dtype.element_ty), mask=inside)


def _launch_noising(
    op, out, x, y, noise, t_B, coef_x, coef_y, coef_noise, key_B3, step, channels_last
) -> None:
    count = x[0].numel()
    kernel, programs, sizes, tile = _noising_fwd_kernel, triton.cdiv(count, 4 * BLOCK), (count,), {}
    if channels_last:
        channels, groups = x.shape[1], count // x.shape[1] // 4
        programs = triton.cdiv(groups, BLOCK // BLOCK_C) * triton.cdiv(channels, BLOCK_C)
        kernel, sizes, tile = _noising_last_kernel, (groups, channels), {"BLOCK_C": BLOCK_C}
    with torch.cuda.device_of(x):
        kernel[programs, x.shape[0]](
            out, x, y, noise, key_B3, t_B, coef_x, coef_y, coef_noise,
            *sizes, coef_x.shape[0], step, out.stride(0),
            x.stride(0), 0 if y is None else y.stride(0), 0 if noise is None else noise.stride(0),
            HAS_Y=y is not None, GIVEN=noise is not None, DRAWN=key_B3 is not None, BLOCK=BLOCK, **tile,
        )  # fmt: skip


def _launch_scaling(op, outs, grad, t_B, tables) -> None:
    count = grad[0].numel()
    grid = (triton.cdiv(count, 1024), grad.shape[0])
    with torch.cuda.device_of(grad):
        for out, table in zip(outs, tables, strict=True):
            if out is not None:
                _scaling_kernel[grid](out, grad, t_B, table, count, table.shape[0], SIZE=1024)


OPS = NoisingOps(_launch_noising, _launch_scaling)


def compilations() -> list[tuple]:
    """Return every form of the kernels that a call may compile (`_launch.compilation`)."""
    flags = (False, True)
    found = []
    for pointer, last, has_y, source in itertools.product(
        POINTERS.values(), flags, flags, ("GIVEN", "DRAWN", None)
    ):
        if has_y or source:
            found.append(_noising_form(pointer, last, has_y, source))
    for pointer in POINTERS.values():
        kinds = {"t_ptr": "*i64", "table_ptr": "*fp32", "count": "i32:16"}
        found.append(compilation(_scaling_kernel, {"SIZE": 1024}, {}, kinds, pointer))
    return found


def _noising_form(pointer: str, last: bool, has_y: bool, source: str | None) -> tuple:
    kernel = _noising_last_kernel if last else _noising_fwd_kernel
    stride = "i64:16" if last else "i64"
    kinds = {name: stride for name in kernel.arg_names if name.startswith("stride")}
    kinds |= dict.fromkeys(("coef_x_ptr", "coef_y_ptr", "coef_noise_ptr"), "*fp32")
    kinds |= {"key_ptr": "*i64", "t_ptr": "*i64", "count": "i32:16", "channels": "i32:16"}
    constants = {"HAS_Y": has_y, "GIVEN": source == "GIVEN", "DRAWN": source == "DRAWN"}
    absent = {
        "noise_ptr": source != "GIVEN",
        "key_ptr": source != "DRAWN",
        "y_ptr": not has_y,
        "coef_y_ptr": not has_y,
    }
    constants |= {name: None for name, gone in absent.items() if gone}
    tile = {"BLOCK": 256, "BLOCK_C": BLOCK_C} if last else {"BLOCK": 256}
    return compilation(kernel, tile, constants, kinds, pointer)
