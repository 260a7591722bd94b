"""Compute inverted_residual with the C++ kernel in csrc/cpu/inverted_residual.cpp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.ops.depthwise_conv import out_shape
from dmtl.runtime.memory import empty

_LANES = 16

SUPPORT = CPU.support()


def inverted_residual(
    x, expand, expand_bias, taps, taps_bias, project, project_bias, packed, stride, padding, residual, high
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    given = [w for w in (expand, expand_bias, taps, taps_bias, project, project_bias) if w is not None]
    if [tuple(p.shape) for p in packed] != [_packed_shape(w) for w in given]:
        packed = [pack(w) for w in given]
    if expand is None:
        packed = [None, None, *packed]
    images, channels, height, width = x.shape
    out_height, out_width = out_shape(x, stride)[2:]
    hidden, n = taps.shape[0], project.shape[0]
    out = empty((images, n, out_height, out_width), x.dtype, torch.channels_last)
    names = ("expand", "expand_bias", "taps", "taps_bias", "project", "project_bias")
    CPU.call(
        "inverted_residual", x, out=out, x=x, **dict(zip(names, packed, strict=True)),
        images=images, channels=channels, height=height, width=width, hidden=hidden, n=n,
        out_height=out_height, out_width=out_width, k=taps.shape[-1], stride=stride, padding=padding,
        residual=residual, high=high,
    )  # fmt: skip
    return out


def pack(weight: Tensor) -> Tensor:
    """Return a bias [n], a weight [n, k] or taps [n, 1, s, s] as the kernel reads them, in float32.

    They become [n], panels [n / 16, k, 16] or blocks [n / 16, s s, 16], the last one filled up with zeros.
    """
    weight = weight.float()
    if weight.dim() == 1:
        return weight.contiguous()
    flat = weight.flatten(1)
    flat = F.pad(flat, (0, 0, 0, -len(flat) % _LANES))
    return flat.unflatten(0, (-1, _LANES)).transpose(1, 2).contiguous()


def _packed_shape(weight: Tensor) -> tuple[int, ...]:
    if weight.dim() == 1:
        return tuple(weight.shape)
    return -(-len(weight) // _LANES), weight[0].numel(), _LANES
