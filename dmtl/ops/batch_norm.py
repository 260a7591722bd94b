"""Apply the batch norm of a training step, and the clamp after it (ReLU, ReLU6 or none), in one pass.

Ioffe and Szegedy, ICML 2015, arXiv 1502.03167. Legend: B images, C channels, n = B H W pixels of a channel.

    mean = sum x / n,    inv_std = 1 / sqrt(sum (x - mean)^2 / n + eps),    x_hat = (x - mean) inv_std
    out = min(max(weight x_hat + bias, low), high)

Gradients, with g = grad where low < weight x_hat + bias < high, else 0:

    d_bias = sum g,    d_weight = sum g x_hat,    d_x = weight inv_std (g - d_bias / n - x_hat d_weight / n)

Numerics: x float32, bfloat16 or float16; everything else and all arithmetic in float32, one rounding at the
end; float64 in the reference. Running statistics are the caller's business: mean and inv_std are returned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import checks
from .arithmetic import wide_dtype
from .autograd import recorded
from .grid import empty_map
from .registry import Operator, OpSpec, add

_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor bias, float eps, float low, float high) "
    "-> (Tensor out, Tensor mean, Tensor inv_std)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor inv_std, float low, float high)"
    " -> (Tensor, Tensor, Tensor)"
)


def _each(values_C: Tensor, x: Tensor) -> Tensor:
    return values_C.to(wide_dtype(x.dtype)).view(1, -1, 1, 1)


def _reference(x, weight, bias, eps, low, high) -> tuple[Tensor, Tensor, Tensor]:
    wide = x.to(wide_dtype(x.dtype))
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    inv_std = (variance + eps).rsqrt()
    x_hat = (wide - _each(mean, x)) * _each(inv_std, x)
    out = (x_hat * _each(weight, x) + _each(bias, x)).clamp(low, high)
    return empty_map(x).copy_(out), mean, inv_std


def _reference_backward(grad, x, weight, bias, mean, inv_std, low, high) -> tuple[Tensor, Tensor, Tensor]:
    wide = wide_dtype(x.dtype)
    x_hat = (x.to(wide) - _each(mean, x)) * _each(inv_std, x)
    out = x_hat * _each(weight, x) + _each(bias, x)
    g = grad.to(wide) * ((out > low) & (out < high))
    d_bias, d_weight, n = g.sum((0, 2, 3)), (g * x_hat).sum((0, 2, 3)), x[:, 0].numel()
    d_x = (g - _each(d_bias, x) / n - x_hat * _each(d_weight, x) / n) * _each(weight, x) * _each(inv_std, x)
    return empty_map(x).copy_(d_x), d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    low: float = -math.inf,
    high: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise every channel over the batch, scale and shift it, and clamp.

    Args:
        x: [B, C, H, W] float32, bfloat16, float16 (or float64), any strides, with at least two pixels of a
            channel.
        weight: [C] float32 or of x's dtype.
        bias: [C] float32 or of x's dtype.
        eps: added to the variance.
        low: lower end of the clamp: 0 for ReLU and ReLU6.
        high: upper end of the clamp: infinity for ReLU, 6 for ReLU6.

    Returns:
        The map [B, C, H, W] of x's dtype, channels_last; mean and 1 / sqrt(variance + eps), float32 [C]
        (float64 for float64), without gradient. Differentiable once, in x, weight and bias.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device, or each channel has a single pixel.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "batch_norm"
    checks.data(op, "x", x)
    if x.dim() != 4:
        checks.fail(op, "x", "of shape [B, C, H, W]", list(x.shape))
    if x.numel() <= x.shape[1]:
        checks.fail(op, "x", "of two pixels of each channel or more", list(x.shape))
    for name, value in (("weight", weight), ("bias", bias)):
        checks.tensor(op, name, value)
        if value.dtype not in (x.dtype, wide_dtype(x.dtype)):
            contract = f"{checks.dtype_name(wide_dtype(x.dtype))} or of x's dtype"
            checks.fail(op, name, contract, checks.dtype_name(value.dtype), TypeError)
        if tuple(value.shape) != (x.shape[1],):
            checks.fail(op, name, f"of shape [{x.shape[1]}]", list(value.shape))
        checks.on_device(op, name, value, x.device)
    return _call(x, weight, bias, eps, low, high)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks."""
    shapes = {
        "tiny": [(2, 1, 1, 1), (1, 3, 1, 2)],
        "odd": [(2, 17, 7, 5), (3, 33, 6, 8), (1, 70, 5, 9)],
        "large": [(8, 96, 64, 80), (8, 144, 32, 40), (8, 1152, 4, 5)],
    }[size]
    cases, clamps = [], ((-math.inf, math.inf), (0.0, 6.0), (0.0, math.inf))
    for index, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(index)
        x = (3 * torch.randn(shape, generator=generator) + 5).to(device, dtype)
        wide = wide_dtype(dtype)
        weight, bias = (torch.randn(shape[1], generator=generator).to(device, wide) for _ in range(2))
        x = x if index % 3 == 1 else x.contiguous(memory_format=torch.channels_last)
        low, high = clamps[index % 3]
        cases.append(dict(x=x, weight=weight, bias=bias + 1, eps=1e-3, low=low, high=high))
    return cases


SPEC = add(
    OpSpec(
        name="batch_norm",
        forward=Operator("batch_norm", _SCHEMA, _reference),
        backward=Operator("batch_norm_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=batch_norm,
        differentiable=("x", "weight", "bias"),
        samples=_samples,
    )
)
_call = recorded(SPEC)
