"""Multiply every pixel's channels by one matrix (pointwise convolution).

Legend: B images, C channels in, K channels out, h x w pixels.

    out[b, k, i, j] = sum over c < C of weight[k, c, 0, 0] x[b, c, i, j]

Gradients: d_x is the product of grad and the weight; d_weight sums grad times x over images and pixels.

Numerics: float32, bfloat16 and float16 in and out, sums in float32, one rounding at the end; float64 in the
reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arithmetic import wide_dtype
from .autograd import recorded
from .grid import empty_map
from .registry import Operator, OpSpec, add
from .samples import draws

_SCHEMA = "(Tensor x, Tensor weight) -> Tensor"
_BACKWARD_SCHEMA = "(Tensor grad, Tensor x, Tensor weight, bool need_x, bool need_weight) -> (Tensor, Tensor)"


def out_shape(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Return the shape [B, K, h, w] of the result."""
    return x.shape[0], weight.shape[0], *x.shape[2:]


def _reference(x: Tensor, weight: Tensor) -> Tensor:
    out, wide = empty_map(x, out_shape(x, weight)), wide_dtype(x.dtype)
    return out.copy_(F.conv2d(x.to(wide), weight.to(wide))) if x.numel() else out


def _reference_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    wide = wide_dtype(x.dtype)
    grad, d_x, d_weight = grad.to(wide), x.new_empty(0), x.new_empty(0)
    if need_x:
        d_x = empty_map(x).copy_(torch.einsum("bkij,kc->bcij", grad, weight.flatten(1).to(wide)))
    if need_weight:
        d_weight = torch.einsum("bkij,bcij->kc", grad, x.to(wide)).to(weight.dtype).view(weight.shape)
    return d_x, d_weight


def pointwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with filters of one pixel, without bias.

    Args:
        x: [B, C, h, w] float32, bfloat16, float16 (or float64), any strides.
        weight: [K, C, 1, 1] of x's dtype, K and C > 0.

    Returns:
        [B, K, h, w], channels_last. Differentiable once, in x and weight.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "pointwise_conv"
    checks.data(op, "x", x)
    checks.tensor(op, "weight", weight)
    if x.dim() != 4 or x.shape[1] == 0:
        checks.fail(op, "x", "of shape [B, C, h, w] with C > 0", list(x.shape))
    checks.same_dtype(op, "weight", weight, x, "x")
    if weight.dim() != 4 or weight.shape[0] == 0 or weight.shape[1:] != (x.shape[1], 1, 1):
        checks.fail(op, "weight", f"of shape [K, {x.shape[1]}, 1, 1] with K > 0", list(weight.shape))
    checks.on_device(op, "weight", weight, x.device)
    return _call(x, weight)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks."""
    shapes = {
        "tiny": [(1, 1, 1, 1, 1), (0, 3, 2, 4, 4), (1, 2, 40, 2, 3)],
        "odd": [(2, 17, 33, 7, 5), (3, 40, 16, 6, 8), (1, 300, 20, 9, 3), (2, 24, 144, 33, 40)],
        "large": [(8, 16, 96, 64, 80), (8, 240, 40, 16, 20), (8, 672, 112, 8, 10), (8, 192, 1152, 4, 5)],
    }[size]
    cases = []
    for index, (B, C, K, h, w) in enumerate(shapes):
        draw = draws(index, dtype, device)
        x, weight = draw(B, C, h, w), draw(K, C, 1, 1, scale=C**-0.5)
        x = x if index % 3 == 1 else x.contiguous(memory_format=torch.channels_last)
        cases.append(dict(x=x, weight=weight))
    return cases


SPEC = add(
    OpSpec(
        name="pointwise_conv",
        forward=Operator("pointwise_conv", _SCHEMA, _reference),
        backward=Operator("pointwise_conv_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=pointwise_conv,
        differentiable=("x", "weight"),
        samples=_samples,
    )
)
_call = recorded(SPEC)
