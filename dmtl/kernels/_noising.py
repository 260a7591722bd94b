"""Calls of the native noising kernels: dense rows in, raw pointers down. Shared by the CPU and the CUDA adapters.

A row (sample) must be dense, in logical order or, where noise is drawn, channels-last with a number of pixels divisible by
four. Everything else goes through a dense copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@dataclass(frozen=True)
class Native:
    """A native module and the last argument its functions take: threads (CPU) or stream (CUDA) for a call with this tensor."""

    module: Callable[[], ModuleType]
    context: Callable[[Tensor], int]


def dense_rows(x: Tensor) -> bool:
    """Rows contiguous in logical order, whatever lies between them."""
    return x.is_contiguous() or (x.dim() > 1 and x.shape[0] > 0 and x[0].is_contiguous() and x.stride(0) >= 0)


def channels_last(x: Tensor) -> bool:
    """[B, C, H, W] stored as [B, H, W, C], so that four neighbouring pixels share a Philox block."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and x.shape[2] * x.shape[3] % 4 == 0


def pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def noising(
    native: Native,
    op: str,
    x: Tensor,
    y: Tensor | None,
    t_B: Tensor,
    coef_x: Tensor,
    coef_y: Tensor | None,
    coef_noise: Tensor,
    noise: Tensor | None,
    key_B3: Tensor | None,
    step: int,
) -> Tensor:
    """out = coef_x[t] x + coef_y[t] y + coef_noise[t] eps, in a fresh tensor with the strides of empty_like(x)."""
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    last = channels_last(x) and channels_last(out)
    memory_format = torch.channels_last if last else torch.contiguous_format

    def dense(z: Tensor | None) -> Tensor | None:
        if z is None or (not last and dense_rows(z)):
            return z
        return z.contiguous(memory_format=memory_format)

    target = out if last or dense_rows(out) else torch.empty_like(x, memory_format=memory_format)
    x, y, noise, key_B3 = dense(x), dense(y), dense(noise), None if key_B3 is None else key_B3.contiguous()
    t_B, coef_x, coef_noise = t_B.contiguous(), coef_x.contiguous(), coef_noise.contiguous()
    coef_y = None if coef_y is None else coef_y.contiguous()
    module = native.module()
    params = module.NoisingParams()
    params.out, params.x, params.y, params.noise = pointer(target), pointer(x), pointer(y), pointer(noise)
    params.key, params.t = pointer(key_B3), pointer(t_B)
    params.coef_x, params.coef_y, params.coef_noise = pointer(coef_x), pointer(coef_y), pointer(coef_noise)
    params.batch, params.count, params.channels = x.shape[0], x[0].numel(), x.shape[1] if last else 0
    params.stride_out, params.stride_x = target.stride(0), x.stride(0)
    params.stride_y = 0 if y is None else y.stride(0)
    params.stride_noise = 0 if noise is None else noise.stride(0)
    params.table_size, params.step = coef_x.shape[0], step
    getattr(module, op)(params, DTYPES[x.dtype], native.context(x))
    return out if target is out else out.copy_(target)


def scaling(
    native: Native,
    op: str,
    grad: Tensor,
    t_B: Tensor,
    tables: tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    """table[t] grad for every needed table, in tensors with the strides of empty_like(grad); empty tensors for the others."""
    outs = [torch.empty_like(grad) if need else grad.new_empty(0) for need in needed]
    if grad.numel() == 0 or not any(needed):
        return tuple(outs)
    fresh = outs[needed.index(True)]
    # Scaling does not care for the order inside a row: any layout that input and output share will do.
    alike = grad.stride() == fresh.stride() and grad.dim() > 0 and grad.stride(0) * grad.shape[0] == grad.numel()
    if alike:
        targets = outs
    else:
        grad = grad.contiguous()
        targets = [torch.empty_like(grad) if need else out for need, out in zip(needed, outs, strict=True)]
    t_B = t_B.contiguous()
    tables = tuple(table.contiguous() for table in tables)
    module = native.module()
    params = module.ScalingParams()
    padding = [0] * (3 - len(tables))
    params.out = [pointer(out) if need else 0 for out, need in zip(targets, needed, strict=True)] + padding
    params.table = [pointer(table) for table in tables] + padding
    params.grad, params.t = pointer(grad), pointer(t_B)
    params.batch, params.count = grad.shape[0], grad[0].numel()
    params.stride_out = params.stride_grad = grad[0].numel()
    params.table_size = tables[0].shape[0]
    getattr(module, op)(params, DTYPES[grad.dtype], native.context(grad))
    return tuple(out if target is out else out.copy_(target) for out, target in zip(outs, targets, strict=True))
