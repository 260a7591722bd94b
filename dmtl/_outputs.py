"""Fresh results of ops whose shapes take more than a line, as their specifications and the kernels' adapters
both allocate them."""

from __future__ import annotations

import torch
from torch import Tensor

GEOMETRY = {4: (4, 0), 2: (4, 1), 1: (3, 1)}
"""Reduction (which is the stride) -> kernel size and padding of the folded convolution."""


def empty_condition_outputs(maps, weight, query_weight, reduction) -> tuple[Tensor, Tensor]:
    """Fresh tokens and query (empty without query_weight)."""
    samples, _, h, w = maps[0].shape
    count = (h // reduction) * (w // reduction)
    tokens = torch.empty((samples, count, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    return tokens, weight.new_empty(0 if query_weight is None else (samples, count, query_weight.shape[0]))


def empty_condition_gradients(maps, weight, norm_weight, norm_bias, query_weight, needed) -> list[Tensor]:
    """Fresh gradients of the maps (channels_last), weight, bias, norm_weight, norm_bias and query_weight,
    empty where not needed."""
    shapes = [
        None if x is None else x.shape
        for x in (weight, weight[:, 0, 0, 0], norm_weight, norm_bias, query_weight)
    ]
    kind = dict(dtype=weight.dtype, device=weight.device)
    layouts = [(m.shape, torch.channels_last) for m in maps] + [(s, torch.contiguous_format) for s in shapes]
    return [
        torch.empty(shape if need else 0, **kind, memory_format=layout if need else torch.contiguous_format)
        for (shape, layout), need in zip(layouts, needed, strict=True)
    ]


def empty_map(x: Tensor, kind: str, height: int, width: int) -> Tensor:
    """A fresh map."""
    if kind == "argmax":
        return x.new_empty((x.shape[0], height, width), dtype=torch.int64)
    shape = (x.shape[0], 3, height, width) if kind == "unit" else (x.shape[0], height, width)
    return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def empty_losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Fresh losses [n], in the arithmetic dtype, and counts [n, 2] int32 of the valid pixels and of those
    above one half."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=dtype), logits.new_empty((rows, 2), dtype=torch.int32)
