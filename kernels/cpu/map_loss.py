"""Compute map_loss and its backward with the C++ kernels in csrc/cpu/map_loss.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.map_loss import readable
from dmtl.kernels.native import CPU
from dmtl.ops.map_loss import KINDS, empty_losses

SUPPORT = CPU.support()


def map_loss(logits, label, *options) -> tuple[Tensor, Tensor]:
    loss, counts = empty_losses(logits)
    if logits.numel():
        bands = (*_bands(logits), 2)
        _call(
            "map_loss", logits, label, options, loss=loss, counts=counts,
            sums=logits.new_empty(bands, dtype=torch.float64),
            band_counts=logits.new_empty(bands, dtype=torch.int32),
        )  # fmt: skip
    return loss, counts


def map_loss_backward(grad, logits, label, counts, *options) -> Tensor:
    d_logits = torch.empty_like(logits)
    if logits.numel():
        parts = (*_bands(logits), 2, logits.shape[1], logits.shape[3])
        _call(
            "map_loss_backward", logits, label, options, grad=grad.contiguous(), counts=counts,
            d_logits=d_logits, parts=logits.new_empty(parts, dtype=torch.float32),
        )  # fmt: skip
    return d_logits


def _bands(logits: Tensor) -> tuple[int, int]:
    return logits.shape[0], logits.shape[2] + 1


def _call(kernel: str, logits: Tensor, label: Tensor, options: tuple, **given: Tensor) -> None:
    kind, ignore, positive_weight, negative_weight, balanced, log, positive, factor = options
    label, ignore = readable(label, ignore)
    buffers = dict.fromkeys(("loss", "counts", "sums", "band_counts", "grad", "d_logits", "parts"))
    strides = dict(zip(("stride_n", "stride_c", "stride_y", "stride_x"), logits.stride(), strict=True))
    d_stride = given["d_logits"].stride() if "d_logits" in given else (0, 0, 0, 0)
    (rows, channels, h, w), (height, width) = logits.shape, label.shape[2:]
    CPU.call(
        kernel, logits, **(buffers | given),
        wide=logits.new_empty((rows, channels, h, w), dtype=torch.float32),
        logits=logits, label=label, label_bytes=label.element_size(), **strides,
        **{f"d_{name}": stride for name, stride in zip(strides, d_stride, strict=True)},
        rows=rows, channels=channels, h=h, w=w, height=height, width=width, ignore=ignore,
        positive_weight=positive_weight, negative_weight=negative_weight, kind=list(KINDS).index(kind),
        balanced=balanced, log=log, positive=positive, factor=factor,
    )  # fmt: skip
