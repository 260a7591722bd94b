"""Compute depthwise_conv and its backward with the C++ kernels in csrc/cpu/depthwise_conv.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.ops.depthwise_conv import out_shape
from dmtl.runtime.memory import empty

SUPPORT = CPU.support()


def depthwise_conv(x, weight, stride, padding) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    out = empty(out_shape(x, stride), x.dtype, torch.channels_last)
    _call("depthwise_conv", x, out, stride, padding, out=out, x=x, taps=_taps(weight), k=weight.shape[-1])
    return out


def depthwise_conv_backward(grad, x, weight, stride, padding, need_x, need_weight) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    C, k = x.shape[1], weight.shape[-1]
    d_x = empty(x.shape, x.dtype, torch.channels_last) if need_x else x.new_empty(0)
    d_weight = x.new_empty(0)
    if need_x:
        _call("depthwise_conv_data", grad, d_x, stride, padding, out=d_x, x=grad, taps=_taps(weight), k=k)
    if need_weight:
        d_taps = torch.empty((k * k, C))
        _call("depthwise_conv_weight", x, grad, stride, padding, d_taps=d_taps, x=x, grad=grad, k=k)
        d_weight = d_taps.t().contiguous().view(C, 1, k, k).to(weight.dtype)
    return d_x, d_weight


def _taps(weight: Tensor) -> Tensor:
    """Return the weight as float32 [k k, C], so that neighbouring channels are neighbours in memory."""
    return weight.flatten(1).t().float().contiguous()


def _call(name: str, x: Tensor, out: Tensor, stride: int, padding: int, /, **fields) -> None:
    """Call a kernel that reads maps like `x`, and writes or also reads maps like `out`."""
    B, C, H, W = x.shape
    h, w = out.shape[2:]
    CPU.call(
        name, x, images=B, channels=C, height=H, width=W, out_height=h, out_width=w, stride=stride,
        padding=padding, **fields,
    )  # fmt: skip
