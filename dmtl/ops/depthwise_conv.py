"""Convolve every channel with its own small filter, with zeros around the map (depthwise convolution).

Legend: B images, C channels, H x W the map, k the filter's side (3 or 5), s the stride (1 or 2), p the
padding on the left and top; h = ceil(H / s), w = ceil(W / s).

    out[b, c, i, j] = sum over u, v < k of weight[c, 0, u, v] x[b, c, s i + u - p, s j + v - p]

x is zero outside the map. Padding on the right and bottom is whatever the last filter position needs, so that
p = k // 2 at stride 1 is the usual symmetric padding, and p = (k - 2) // 2 at stride 2 is TensorFlow's "SAME"
for even sizes.

Gradients: d_x gathers weight times grad over the positions that read a pixel; d_weight sums grad times x over
images and positions.

Numerics: float32, bfloat16 and float16 in and out, arithmetic in float32, one rounding at the end; float64 in
the reference.
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

_SCHEMA = "(Tensor x, Tensor weight, int stride, int padding) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor weight, int stride, int padding, bool need_x, bool need_weight) "
    "-> (Tensor, Tensor)"
)


def out_shape(x: Tensor, stride: int) -> tuple[int, ...]:
    """Return the shape [B, C, h, w] of the result."""
    return *x.shape[:2], -(-x.shape[2] // stride), -(-x.shape[3] // stride)


def pads(x: Tensor, k: int, stride: int, padding: int) -> tuple[int, int, int, int]:
    """Return padding on the left, right, top and bottom; negative where the last pixels are not read."""
    h, w = out_shape(x, stride)[2:]
    right, bottom = ((n - 1) * stride + k - padding - side for n, side in ((w, x.shape[3]), (h, x.shape[2])))
    return padding, right, padding, bottom


def _reference(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    out = empty_map(x, out_shape(x, stride))
    if out.numel() == 0:
        return out
    wide = wide_dtype(x.dtype)
    padded = F.pad(x.to(wide), pads(x, weight.shape[-1], stride, padding))
    return out.copy_(F.conv2d(padded, weight.to(wide), stride=stride, groups=x.shape[1]))


def _reference_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    wide, (k, C) = wide_dtype(x.dtype), (weight.shape[-1], x.shape[1])
    around = pads(x, k, stride, padding)
    d_x, d_weight = x.new_empty(0), x.new_empty(0)
    if need_x:
        d_x = empty_map(x)
    if need_weight:
        d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return d_x, d_weight
    padded, grad, wide_weight = F.pad(x.to(wide), around), grad.to(wide), weight.to(wide)
    mask = [need_x, need_weight, False]
    d_padded, d_taps, _ = torch.ops.aten.convolution_backward(
        grad, padded, wide_weight, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], C, mask
    )
    if need_x:
        d_x.copy_(F.pad(d_padded, [-side for side in around]))
    if need_weight:
        d_weight.copy_(d_taps)
    return d_x, d_weight


def depthwise_conv(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int | None = None) -> Tensor:
    """Convolve every channel with its own filter.

    Args:
        x: [B, C, H, W] float32, bfloat16, float16 (or float64), any strides.
        weight: [C, 1, k, k] of x's dtype, k 3 or 5.
        stride: 1 or 2.
        padding: zeros on the left and top, below k; default k // 2. On the right and bottom as many as
            needed.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)], channels_last. Differentiable once, in x and weight.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape, stride, padding or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "depthwise_conv"
    checks.data(op, "x", x)
    checks.tensor(op, "weight", weight)
    if x.dim() != 4:
        checks.fail(op, "x", "of shape [B, C, H, W]", list(x.shape))
    checks.same_dtype(op, "weight", weight, x, "x")
    k = weight.shape[-1] if weight.dim() == 4 else 0
    if k not in (3, 5) or tuple(weight.shape) != (x.shape[1], 1, k, k):
        checks.fail(op, "weight", f"of shape [{x.shape[1]}, 1, k, k] with k 3 or 5", list(weight.shape))
    if stride not in (1, 2):
        checks.fail(op, "stride", "1 or 2", stride)
    padding = k // 2 if padding is None else padding
    if not 0 <= padding < k:
        checks.fail(op, "padding", f"from 0 to {k - 1}", padding)
    checks.on_device(op, "weight", weight, x.device)
    return _call(x, weight, stride, padding)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks."""
    shapes = {
        "tiny": [(1, 1, 1, 1, 3, 1, None), (0, 3, 4, 4, 3, 1, None), (1, 2, 2, 3, 5, 2, 1)],
        "odd": [
            (2, 17, 7, 5, 3, 1, None),
            (3, 33, 6, 8, 3, 2, 0),
            (2, 20, 5, 9, 5, 1, None),
            (1, 65, 8, 6, 5, 2, 1),
        ],
        "large": [(2, 96, 64, 80, 3, 2, 0), (2, 144, 32, 40, 3, 1, None), (4, 672, 8, 10, 5, 1, None)],
    }[size]
    cases = []
    for index, (B, C, H, W, k, stride, padding) in enumerate(shapes):
        draw = draws(index, dtype, device)
        x, weight = draw(B, C, H, W), draw(C, 1, k, k)
        x = x if index % 3 == 1 else x.contiguous(memory_format=torch.channels_last)
        cases.append(dict(x=x, weight=weight, stride=stride, padding=padding))
    return cases


SPEC = add(
    OpSpec(
        name="depthwise_conv",
        forward=Operator("depthwise_conv", _SCHEMA, _reference),
        backward=Operator("depthwise_conv_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=depthwise_conv,
        differentiable=("x", "weight"),
        samples=_samples,
    )
)
_call = recorded(SPEC)
