"""Compute a batch norm and the activation after it, with the fused operator if that trains faster."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn

from dmtl import ops


def norm_act(norm: nn.Module, x: Tensor, high: float | None = math.inf) -> Tensor:
    """Apply a batch norm, then clamp to [0, high].

    In training mode on a CPU, `ops.batch_norm` computes channels-last maps. In all other cases (evaluation,
    GPUs, compiled graphs, other norms) torch does.

    Args:
        norm: the batch norm, or the module that replaced it by folding. Its parameters and running statistics
            are used and updated as if it were called.
        x: [B, C, h, w].
        high: infinity for ReLU, 6 for ReLU6, None for no activation.
    """
    if _by_operator(norm, x):
        low, top = (-math.inf, math.inf) if high is None else (0.0, high)
        out, mean, inv_std = ops.batch_norm(x, norm.weight, norm.bias, eps=norm.eps, low=low, high=top)
        _update(norm, mean, inv_std, x.numel() // x.shape[1])
        return out
    x = norm(x)
    if high is None:
        return x
    return x.relu_() if high == math.inf else nn.functional.relu6(x, inplace=True)


def _by_operator(norm: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
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
    """Update the running statistics as `nn.BatchNorm2d` does, with the unbiased variance."""
    variance = (inv_std.double() ** -2 - norm.eps) * (pixels / (pixels - 1))
    running_mean, running_var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert running_mean is not None and running_var is not None and count is not None
    assert norm.momentum is not None
    running_mean.lerp_(mean, norm.momentum)
    running_var.lerp_(variance.float(), norm.momentum)
    count.add_(1)
