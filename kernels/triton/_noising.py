"""Triton kernels of the two noising ops and of their backward. A program makes 4 * BLOCK elements of one
row."""

import itertools

import torch
import triton
import triton.language as tl
from dmtl.kernels.triton._noise import INTERPRETED, draw
from torch import Tensor

from dmtl.kernels._native import DTYPES
from dmtl.kernels._noising import NoisingCall, ScalingCall, finish
from dmtl.runtime.support import Support

BLOCK = 4096 if INTERPRETED else 256  # the interpreter pays for every program


def _missing() -> list[str]:
    if INTERPRETED or torch.cuda.is_available():
        return []
    return ["torch sees no CUDA device (and TRITON_INTERPRET=1 is not set)"]


SUPPORT = Support(
    devices=("cpu",) if INTERPRETED else ("cuda",),
    dtypes=tuple(DTYPES),
    available=_missing,
)


@triton.jit(do_not_specialize=["step"])  # one compilation for all steps
def _noising_fwd_kernel(
    out_ptr, x_ptr, y_ptr, noise_ptr, key_ptr, t_ptr, coef_x_ptr, coef_y_ptr, coef_noise_ptr,
    count, channels, table_size, step, stride_out, stride_x, stride_y, stride_noise,
    HAS_Y: tl.constexpr, GIVEN: tl.constexpr, DRAWN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    t = tl.load(t_ptr + row)
    valid = (t >= 0) & (t < table_size)  # a bad index gives a row of NaN
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first * 4 + tl.arange(0, 4 * BLOCK)
    inside = element < count
    offset = element
    if CHANNELS_LAST:
        pixels = count // channels
        offset = (element % pixels) * channels + element // pixels
    x = tl.load(x_ptr + row * stride_x + offset, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(coef_x_ptr + t, mask=valid, other=float("nan")) * x
    if HAS_Y:
        y = tl.load(y_ptr + row * stride_y + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.fma(tl.zeros_like(y) + tl.load(coef_y_ptr + t, mask=valid, other=float("nan")), y, value)
    if GIVEN or DRAWN:
        scale = tl.load(coef_noise_ptr + t, mask=valid, other=float("nan"))
        if DRAWN:
            block = (first + tl.arange(0, BLOCK)).to(tl.uint32)
            key = key_ptr + row * 3
            eps = draw(block, tl.load(key), tl.load(key + 1), tl.load(key + 2), step)
        else:
            eps = tl.load(noise_ptr + row * stride_noise + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(scale == 0.0, value, tl.fma(tl.zeros_like(eps) + scale, eps, value))
    tl.store(out_ptr + row * stride_out + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scaling_kernel(out_ptr, grad_ptr, t_ptr, table_ptr, count, table_size, SIZE: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    t = tl.load(t_ptr + row)
    scale = tl.load(table_ptr + t, mask=(t >= 0) & (t < table_size), other=float("nan"))
    element = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = element < count
    grad = tl.load(grad_ptr + row * count + element, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * count + element, (scale * grad).to(out_ptr.dtype.element_ty), mask=inside)


def noising(*args, out: Tensor | None = None) -> Tensor:
    """The kernel on the arguments of a `NoisingCall`, into `out` or a fresh tensor with the strides of
    empty_like(x)."""
    if args[0].numel() == 0:
        return torch.empty_like(args[0]) if out is None else out
    call = NoisingCall(*args)
    out, target, last = call.dense(out)
    x, y, noise = call.x, call.y, call.noise
    count = x[0].numel()
    grid = (triton.cdiv(count, 4 * BLOCK), x.shape[0])
    with torch.cuda.device_of(x):
        _noising_fwd_kernel[grid](
            target, x, y, noise, call.key_B3, call.t_B, call.coef_x, call.coef_y, call.coef_noise,
            count, x.shape[1] if last else 0, call.coef_x.shape[0], call.step, target.stride(0), x.stride(0),
            0 if y is None else y.stride(0), 0 if noise is None else noise.stride(0),
            HAS_Y=y is not None, GIVEN=noise is not None, DRAWN=call.key_B3 is not None,
            CHANNELS_LAST=last, BLOCK=BLOCK,
        )  # fmt: skip
    return out if target is out else out.copy_(target)


def scaling(*args) -> tuple[Tensor, ...]:
    """The kernel on the arguments of a `ScalingCall`, once for each needed table."""
    call = ScalingCall(*args)
    outs, targets = call.dense()
    grad = call.grad
    if grad.numel() == 0:
        return tuple(outs)
    count = grad[0].numel()
    with torch.cuda.device_of(grad):
        for target, table, need in zip(targets, call.tables, call.needed, strict=True):
            if need:
                grid = (triton.cdiv(count, 1024), grad.shape[0])
                _scaling_kernel[grid](target, grad, call.t_B, table, count, table.shape[0], SIZE=1024)
    return finish(outs, targets)


def compilations() -> list[tuple]:
    """Every form of the kernels that a call may compile: (kernel, signature, constants, options)."""
    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    flags = (False, True)
    found = []
    for dtype, last, has_y, source in itertools.product(pointers, flags, flags, ("GIVEN", "DRAWN", None)):
        if has_y or source:
            found.append(_noising_form(pointers[dtype], last, has_y, source))
    for pointer in pointers.values():
        signature = {"out_ptr": pointer, "grad_ptr": pointer, "t_ptr": "*i64", "table_ptr": "*fp32"}
        signature |= {"count": "i32:16", "table_size": "i32"}
        found.append((_scaling_kernel, signature, {"SIZE": 1024}, {}))
    return found


def _noising_form(pointer: str, last: bool, has_y: bool, source: str | None) -> tuple:
    kernel = _noising_fwd_kernel
    signature = {name: "i64" if name.startswith("stride") else "i32" for name in kernel.arg_names}
    signature |= dict.fromkeys(("coef_x_ptr", "coef_y_ptr", "coef_noise_ptr"), "*fp32")
    signature |= dict.fromkeys(("out_ptr", "x_ptr", "y_ptr", "noise_ptr"), pointer)
    signature |= {"key_ptr": "*i64", "t_ptr": "*i64", "count": "i32:16"}
    constants = {"HAS_Y": has_y, "GIVEN": source == "GIVEN", "DRAWN": source == "DRAWN"}
    constants |= {"CHANNELS_LAST": last, "BLOCK": 256}
    absent = {
        "noise_ptr": source != "GIVEN",
        "key_ptr": source != "DRAWN",
        "y_ptr": not has_y,
        "coef_y_ptr": not has_y,
    }
    constants |= {name: None for name, gone in absent.items() if gone}
    return kernel, signature, constants, {}
