"""Add the time embedding to the pre-layer's map, and reduce the sum to noisy tokens (DiffusionMTL, MTDNet).

Legend: R rows, C channels, h x w the map, r the reduction (1, 2 or 4), N = (h / r) (w / r) tokens.

    skip[c, y, x] = x[c, y, x] + bias[c]
    tokens[i, j, c] = mean of skip over the 2x2 centre of the r x r block (i, j)     (r = 1: the pixel itself)

which is bilinear interpolation by 1 / r (align_corners=False). Without a bias skip is x itself, and only the
centres are read: a quarter of the map at r = 4.

Gradients:

    d_x = grad_skip + grad_tokens / 4 on the centres
    d_bias = sum of d_x over the pixels (and over the rows if they share one bias)

Numerics: float32, bfloat16 and float16 in and out, arithmetic in float32, one rounding at the end; float64 in
the reference. Tokens are made from the unrounded skip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import checks, grid
from .arithmetic import wide_dtype
from .registry import Operator, OpSpec, add
from .samples import sample_maps

_SCHEMA = "(Tensor x, Tensor? bias, int reduction) -> (Tensor, Tensor)"
_BACKWARD_SCHEMA = "(Tensor grad_skip, Tensor grad_tokens, int bias_dim, int reduction) -> (Tensor, Tensor)"


def _centres(x: Tensor, reduction: int) -> list[Tensor]:
    """Return views [R, C, h / r, w / r] of the pixels that a token is the mean of."""
    first = 1 if reduction == 4 else 0
    steps = range(first, first + min(reduction, 2))
    return [x[..., dy::reduction, dx::reduction] for dy in steps for dx in steps]


def _reference(x: Tensor, bias: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    wide = x.to(wide_dtype(x.dtype))
    skip = x.new_empty(0)
    if bias is not None:
        wide = wide + bias.to(wide.dtype).reshape(-1, x.shape[1], 1, 1)
        skip = grid.empty_map(x).copy_(wide)
    centres = _centres(wide, reduction)
    tokens = sum(centres[1:], centres[0]) / len(centres)
    return skip, grid.empty_tokens(x, reduction).copy_(tokens.flatten(2).transpose(1, 2))


def _reference_backward(
    grad_skip: Tensor, grad_tokens: Tensor, bias_dim: int, reduction: int
) -> tuple[Tensor, Tensor]:
    d_x = grad_skip.to(wide_dtype(grad_skip.dtype), copy=True)
    centres = _centres(d_x, reduction)
    h, w = d_x.shape[2] // reduction, d_x.shape[3] // reduction
    for centre in centres:
        centre += grid.tokens_as_map(grad_tokens.to(d_x.dtype), h, w) / len(centres)
    d_bias = d_x.sum((2, 3) if bias_dim == 2 else (0, 2, 3)) if bias_dim else d_x.new_empty(0)
    return grid.empty_map(grad_skip).copy_(d_x), d_bias.to(grad_skip.dtype)


def bias_shape(x: Tensor, bias_dim: int) -> tuple[int, ...]:
    """Return the shape of a bias of 1 or 2 dimensions; (0,) for no bias."""
    return {0: (0,), 1: (x.shape[1],), 2: (x.shape[0], x.shape[1])}[bias_dim]


class _NoisyTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
        ctx.reduction = reduction
        ctx.bias_dim = bias.dim() if bias is not None and bias.requires_grad else 0
        skip, tokens = torch.ops.dmtl.noisy_tokens(x, bias, reduction)
        return x.view_as(x) if bias is None else skip, tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_skip: Tensor, grad_tokens: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_bias = torch.ops.dmtl.noisy_tokens_backward(
            grad_skip, grad_tokens, ctx.bias_dim, ctx.reduction
        )
        return d_x, d_bias if ctx.bias_dim else None, None


def noisy_tokens(x: Tensor, bias: Tensor | None = None, *, reduction: int) -> tuple[Tensor, Tensor]:
    """Compute the skip map x + bias and its tokens, in one pass over x.

    Args:
        x: [R, C, h, w] float32, bfloat16, float16 (or float64), any strides; h and w multiples of reduction.
        bias: [C] or [R, C] of x's dtype, or None.
        reduction: 1, 2 or 4.

    Returns:
        (skip [R, C, h, w] channels_last, tokens [R, N, C] contiguous). Without a bias skip is x itself, or
        its channels_last copy if it has other strides. Differentiable once, in x and bias.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "noisy_tokens"
    grid.check_reduction(op, reduction)
    grid.check_map(op, "x", x, reduction)
    if bias is not None:
        _check_bias(op, bias, x)
    else:
        x = grid.channels_last(x)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _NoisyTokens.apply(x, bias, reduction)
    skip, tokens = torch.ops.dmtl.noisy_tokens(x, bias, reduction)
    return x if bias is None else skip, tokens


def _check_bias(op: str, bias: object, x: Tensor) -> None:
    R, C = x.shape[:2]
    bias = checks.tensor(op, "bias", bias)
    checks.same_dtype(op, "bias", bias, x, "x")
    if bias.shape != ((C,) if bias.dim() == 1 else (R, C)):
        checks.fail(op, "bias", f"of shape [{C}] or [{R}, {C}]", list(bias.shape))
    checks.on_device(op, "bias", bias, x.device)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks: without a bias, with one for all rows, with one for each."""
    cases = []
    for index, (x, reduction) in enumerate(sample_maps(size, dtype, device)):
        bias = torch.linspace(-1, 1, x.shape[0] * x.shape[1], device=device).to(dtype).reshape(x.shape[:2])
        shared = torch.linspace(1, -1, x.shape[1], device=device).to(dtype)
        kinds = (shared, bias, None)
        for given in kinds if index == 0 else (kinds[index % 3],):
            cases.append(dict(x=x, bias=given, reduction=reduction))
    return cases


SPEC = add(
    OpSpec(
        name="noisy_tokens",
        forward=Operator("noisy_tokens", _SCHEMA, _reference),
        backward=Operator("noisy_tokens_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=noisy_tokens,
        differentiable=("x", "bias"),
        samples=_samples,
    )
)
