"""Compute batch_norm and its backward with the C++ kernels in csrc/cpu/batch_norm.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.runtime.memory import empty

SUPPORT = CPU.support()

# Elements per partial sum; a fixed number, so that sums do not depend on the number of threads.
_PART = 1 << 14


def batch_norm(x, weight, bias, eps, low, high) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous(memory_format=torch.channels_last)
    out, sizes = empty(x.shape, x.dtype, torch.channels_last), _sizes(x)
    mean, inv_std = (torch.empty(x.shape[1]) for _ in range(2))
    CPU.call(
        "batch_norm", x, out=out, mean=mean, inv_std=inv_std, sums=_scratch(sizes), x=x,
        weight=_dense(weight), bias=_dense(bias), eps=eps, low=low, high=high, **sizes,
    )  # fmt: skip
    return out, mean, inv_std


def batch_norm_backward(grad, x, weight, bias, mean, inv_std, low, high) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    d_x, sizes = empty(x.shape, x.dtype, torch.channels_last), _sizes(x)
    d_weight, d_bias = (torch.empty(x.shape[1]) for _ in range(2))
    CPU.call(
        "batch_norm_backward", x, d_x=d_x, d_weight=d_weight, d_bias=d_bias, sums=_scratch(sizes), grad=grad,
        x=x, weight=_dense(weight), bias=_dense(bias), mean=_dense(mean), inv_std=_dense(inv_std), low=low,
        high=high, **sizes,
    )  # fmt: skip
    return d_x, d_weight.to(weight.dtype), d_bias.to(bias.dtype)


def _dense(values_C: Tensor) -> Tensor:
    return values_C.float().contiguous()


def _sizes(x: Tensor) -> dict[str, int]:
    channels = x.shape[1]
    return {"pixels": x.numel() // channels, "channels": channels, "part": max(1, _PART // channels)}


def _scratch(sizes: dict[str, int]) -> Tensor:
    """Allocate scratch memory for two sums of every channel in each part."""
    parts = -(-sizes["pixels"] // sizes["part"])
    return torch.empty(parts, 2, sizes["channels"])
