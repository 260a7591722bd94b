"""Put tokens back on the map: bilinear upsampling of the token grid plus the skip map (MTDNet).

Legend: R rows, C channels, h x w the map, r the reduction (1, 2 or 4), N = (h / r) (w / r) tokens.

    out[c, y, x] = skip[c, y, x] + sum over tokens (i, j) of U_h[y, i] U_w[x, j] tokens[i, j, c]

U are the matrices of bilinear interpolation by r (align_corners=False, clamped at the ends: two tokens for
each pixel and axis).

Gradients:

    d_tokens = U_h^T grad U_w,    d_skip = grad itself

Numerics: float32, bfloat16 and float16 in and out, arithmetic in float32, one rounding at the end; float64 in
the reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, grid
from .arithmetic import wide_dtype
from .autograd import recorded
from .registry import Operator, OpSpec, add
from .samples import draws, sample_maps

_SCHEMA = "(Tensor tokens, Tensor skip, int reduction) -> Tensor"
_BACKWARD_SCHEMA = "(Tensor grad, int reduction) -> Tensor"


def _reference(tokens: Tensor, skip: Tensor, reduction: int) -> Tensor:
    h, w = skip.shape[2:]
    wide = wide_dtype(skip.dtype)
    upsampled = grid.tokens_as_map(tokens.to(wide), h // reduction, w // reduction)
    if reduction > 1 and upsampled.numel() > 0:
        upsampled = F.interpolate(upsampled, scale_factor=reduction, mode="bilinear", align_corners=False)
    out = grid.empty_map(skip)
    return out if out.numel() == 0 else out.copy_(skip.to(wide) + upsampled)


def _reference_backward(grad: Tensor, reduction: int) -> Tensor:
    wide = grad.to(wide_dtype(grad.dtype))
    along_y, along_x = (
        grid.interpolation(size, reduction, wide.dtype, wide.device) for size in grad.shape[2:]
    )
    d_tokens = torch.einsum("rcyx,yi,xj->rijc", wide, along_y, along_x)
    return grid.empty_tokens(grad, reduction).copy_(d_tokens.flatten(1, 2))


def upsample_add(tokens: Tensor, skip: Tensor, *, reduction: int) -> Tensor:
    """Add the tokens, interpolated from their grid to the map, to skip.

    Args:
        tokens: [R, N, C] of skip's dtype, any strides.
        skip: [R, C, h, w] float32, bfloat16, float16 (or float64), any strides; h and w multiples of
            reduction.
        reduction: 1, 2 or 4.

    Returns:
        The sum [R, C, h, w], channels_last. Differentiable once, in tokens and skip.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "upsample_add"
    grid.check_reduction(op, reduction)
    checks.data(op, "tokens", tokens)
    grid.check_map(op, "skip", skip, reduction)
    checks.same_dtype(op, "tokens", tokens, skip, "skip")
    expected = grid.tokens_shape(skip, reduction)
    if tuple(tokens.shape) != expected:
        checks.fail(op, "tokens", f"of shape [R, N, C] = {list(expected)}", list(tokens.shape))
    checks.on_device(op, "tokens", tokens, skip.device)
    return _call(tokens, skip, reduction)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks."""
    cases = []
    for index, (skip, reduction) in enumerate(sample_maps(size, dtype, device)):
        R, N, C = grid.tokens_shape(skip, reduction)
        tokens = draws(index, dtype, device)(R, C, N).transpose(1, 2)
        cases.append(
            dict(tokens=tokens if index % 3 == 1 else tokens.contiguous(), skip=skip, reduction=reduction)
        )
    return cases


SPEC = add(
    OpSpec(
        name="upsample_add",
        forward=Operator("upsample_add", _SCHEMA, _reference),
        backward=Operator("upsample_add_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=upsample_add,
        differentiable=("tokens", "skip"),
        samples=_samples,
    )
)
_call = recorded(SPEC, through="skip")
