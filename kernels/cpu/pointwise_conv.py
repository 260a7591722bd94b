"""Compute pointwise_conv and its backward with the C++ kernels in csrc/cpu/pointwise_conv.cpp, float32 only.

The library serves 16-bit numbers: it multiplies bfloat16 if the processor does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.ops.pointwise_conv import out_shape
from dmtl.runtime.memory import empty

SUPPORT = CPU.support(dtypes=(torch.float32,))


def pointwise_conv(x, weight) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    out = empty(out_shape(x, weight), x.dtype, torch.channels_last)
    _call("pointwise_conv", x, weight, out=out, x=x, weight=weight.contiguous())
    return out


def pointwise_conv_backward(grad, x, weight, need_x, need_weight) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    d_x = empty(x.shape, x.dtype, torch.channels_last) if need_x else x.new_empty(0)
    d_weight = x.new_empty(weight.shape if need_weight else 0)
    if need_x:
        _call("pointwise_conv_data", x, weight, d_x=d_x, grad=grad, weight=weight.contiguous())
    if need_weight:
        _call("pointwise_conv_weight", x, weight, d_weight=d_weight, grad=grad, x=x)
    return d_x, d_weight


def _call(name: str, x: Tensor, of: Tensor, /, **fields) -> None:
    """Call a kernel for maps like `x` and a weight like `of`."""
    B, C, h, w = x.shape
    CPU.call(name, x, pixels=B * h * w, channels=C, n=of.shape[0], **fields)
