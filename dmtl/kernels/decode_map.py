"""The native call of decode_map, the same for C++ and CUDA. Kernels read x with any strides."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import Native
from dmtl.ops.decode_map import CHANNELS, empty_output


def decode_map(native: Native, x, weight, bias, kind, height, width, factor) -> Tensor:
    out = empty_output(x, kind, height, width)
    if not out.numel():
        return out
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    (rows, channels, h, w), classes = x.shape, x.shape[1] if weight is None else weight.shape[0]
    stride_n, stride_c, stride_y, stride_x = x.stride()
    native.call(
        "decode_map", x, out=out, logits=x.new_empty((rows, classes, h, w), dtype=torch.float32), x=x,
        weight=weight, bias=bias, stride_n=stride_n, stride_c=stride_c, stride_y=stride_y, stride_x=stride_x,
        rows=rows, channels=channels, classes=classes, h=h, w=w, height=height, width=width, factor=factor,
        kind=list(CHANNELS).index(kind),
    )  # fmt: skip
    return out
