"""What the adapters of conv3x3 share: what the library computes, task by task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.ops.grid import empty_map


def library_convolution(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    counts: list[int],
    *,
    relu: bool = False,
    flipped: bool = False,
) -> Tensor:
    """Compute the forward's convolution, x [R, C, h, w] -> [R, K, h, w], or with `flipped` the data
    gradient's, back from K to C channels. biases: one for each task, or none."""
    out = empty_map(x, (x.shape[0], weights[0].shape[1 if flipped else 0], *x.shape[2:]))
    convolve = F.conv_transpose2d if flipped else F.conv2d
    end = 0
    for task, count in enumerate(counts):
        rows, end = slice(end, end + count), end + count
        if count:
            y = convolve(x[rows], weights[task], biases[task] if biases else None, padding=1)
            out[rows] = torch.relu_(y) if relu else y
    return out


def library_gradients(
    g: Tensor,
    x: Tensor,
    weights: list[Tensor],
    counts: list[int],
    need_weights: bool,
    need_biases: bool,
    need_taps: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Compute the gradients of weights, biases and tap biases, each a list over all tasks (or empty).

    g: [R, K, h, w], the incoming gradient behind the ReLU; x: [R, C, h, w]; rows sorted by task.
    """
    d_weights = [torch.zeros_like(weight) for weight in weights] if need_weights else []
    d_biases = [weight.new_zeros(weight.shape[0]) for weight in weights] if need_biases else []
    d_taps = [weight.new_zeros(weight.shape[0], 3, 3) for weight in weights] if need_taps else []
    end = 0
    for task, count in enumerate(counts):
        rows, end = slice(end, end + count), end + count
        if count == 0:
            continue
        if need_weights:
            d_weights[task].copy_(_weight_gradient(g[rows], x[rows], weights[task]))
        if need_biases or need_taps:
            taps = _tap_sums(g[rows].sum(0, dtype=torch.float32))
            if need_biases:
                d_biases[task].copy_(taps[:, 1, 1])  # every pixel has its middle tap inside
            if need_taps:
                d_taps[task].copy_(taps)
    return d_weights, d_biases, d_taps


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    ones, mask = [1, 1], [False, True, False]
    _, d_weight, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, ones, ones, ones, False, [0, 0], 1, mask
    )
    return d_weight


def _tap_sums(total: Tensor) -> Tensor:
    """Return sums [K, 3, 3] of [K, h, w] over the pixels whose tap (a, b) is inside the image.

    A tap of the first row of weights misses the image in its first row of pixels, and so on round the border.
    """
    rows = total.sum(1)  # [K, w]
    rows = torch.stack([rows - total[:, 0], rows, rows - total[:, -1]], dim=1)
    return torch.stack([rows[..., 1:].sum(-1), rows.sum(-1), rows[..., :-1].sum(-1)], dim=2)
