"""A batch norm and the activation behind it, by the fused operator where that trains faster."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmtl import ops


def norm_act(norm: nn.Module, x: Tensor, high: float | None = math.inf) -> Tensor:
    """Apply a batch norm (or what folding left of it), then clamp to [0, high].

    In training mode a CPU computes channels-last maps with `ops.batch_norm`, which updates the same running
    statistics; everything else (evaluation, GPUs, compiled graphs, other kinds of norm) is the library's.

    Args:
        norm: its parameters and statistics are used and updated as by calling it.
        x: [B, C, h, w].
        high: infinity for ReLU, 6 for ReLU6, None for no activation.
    """
    if _by_operator(norm, x):
        low = -math.inf if high is None else 0.0
        options = dict(eps=norm.eps, low=low, high=math.inf if high is None else high)
        out, mean, inv_std = ops.batch_norm(x, norm.weight, norm.bias, **options)
        _update(norm, mean, inv_std, x.numel() // x.shape[1])
        return out
    x = norm(x)
    if high is None:
        return x
    return x.relu_() if high == math.inf else nn.functional.relu6(x, inplace=True)


def _by_operator(norm: nn.Module, x: Tensor) -> bool:
    if type(norm) is not nn.BatchNorm2d or not norm.training or torch.compiler.is_compiling():
        return False
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    return (
        usual
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and norm.weight.dtype == torch.float32
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, inv_std: Tensor, pixels: int) -> None:
    """Move the running statistics as `nn.BatchNorm2d` does: the variance without bias."""
    variance = (inv_std.double() ** -2 - norm.eps) * (pixels / (pixels - 1))
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance.float(), norm.momentum)
    norm.num_batches_tracked.add_(1)
