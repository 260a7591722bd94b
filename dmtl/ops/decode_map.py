"""Compute a task's map from its feature: 1x1 head, bilinear upsampling, decoding.

This is the end of DiffusionMTL's network.

Legend: n rows, C channels, h x w the map, C_T channels of the task, f = factor, H x W the image.

    l = weight x + bias at h x w;  u = bilinear(l, f) cropped to H x W (align_corners=False)

    argmax   int64   [n,H,W]    the first channel with the largest u (NaN counts as largest)
    softmax  float32 [n,H,W]    softmax probability of channel 1 of two: sigmoid(u_1 - u_0)
    sigmoid  float32 [n,H,W]    1 / (1 + exp(-u))
    value    float32 [n,H,W]    u;   exp: exp(u)
    unit     float32 [n,3,H,W]  u / max(|u|, 1e-4)

The head commutes with the upsampling, and logits at the image's size are never stored. Not differentiable.

Numerics: logits and everything after them in float32 (float64 in the reference, whose maps are then
float64). Interpolated values carry rounding of a few ulp, so argmax may differ between backends where the two
largest logits are that close.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arithmetic import unit, wide_dtype
from .registry import Operator, OpSpec, add
from .samples import draws

CHANNELS = {"argmax": None, "softmax": 2, "sigmoid": 1, "value": 1, "exp": 1, "unit": 3}
"""Kind -> channels that it decodes (None: any number), in the order of DecodeKind in decode_map.h."""

_SCHEMA = (
    "(Tensor x, Tensor? weight, Tensor? bias, str kind, SymInt height, SymInt width, SymInt factor) -> Tensor"
)


def empty_output(x: Tensor, kind: str, height: int, width: int) -> Tensor:
    """Allocate the map of a kind."""
    if kind == "argmax":
        return x.new_empty((x.shape[0], height, width), dtype=torch.int64)
    shape = (x.shape[0], 3, height, width) if kind == "unit" else (x.shape[0], height, width)
    return x.new_empty(shape, dtype=wide_dtype(x.dtype))


def _reference(x, weight, bias, kind, height, width, factor) -> Tensor:
    wide = wide_dtype(x.dtype)
    logits = x.to(wide)
    if weight is not None:
        bias = None if bias is None else bias.to(wide)
        logits = F.conv2d(logits, weight.to(wide)[:, :, None, None], bias)
    if factor > 1 and logits.numel():
        logits = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
    out = empty_output(x, kind, height, width)
    return out.copy_(decode_logits(logits[..., :height, :width], kind)) if out.numel() else out


def decode_logits(u: Tensor, kind: str) -> Tensor:
    """Decode logits [n, C_T, H, W] of a kind, in their dtype."""
    if kind == "argmax":
        return u.argmax(1)
    if kind == "unit":
        return unit(u)[0]
    if kind == "softmax":
        return torch.sigmoid(u[:, 1] - u[:, 0])
    u = u[:, 0]
    return u.sigmoid() if kind == "sigmoid" else u.exp() if kind == "exp" else u


def decode_map(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
    size: tuple[int, int],
    factor: int = 8,
) -> Tensor:
    """Decode a task's feature (or logits) into its map at the image's size.

    Args:
        x: [n, C, h, w] float32, bfloat16, float16 (or float64), any strides: the feature, or the logits if
            weight is None.
        weight: [C_T, C] of x's dtype.
        bias: [C_T] of x's dtype.
        kind: "argmax", "softmax" (C_T = 2), "sigmoid", "value", "exp" (C_T = 1) or "unit" (C_T = 3).
        size: (H, W) of the map, at most (factor h, factor w): the upsampled map is cropped at the right and
            at the bottom.
        factor: whole number of map pixels to each of x's, at least 1.

    Returns:
        A contiguous map: int64 [n, H, W] for "argmax", float32 [n, 3, H, W] for "unit", otherwise float32
        [n, H, W]. Not differentiable.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    height, width = _check(x, weight, bias, kind, size, factor)
    detached = [None if t is None else t.detach() for t in (x, weight, bias)]
    return torch.ops.dmtl.decode_map(*detached, kind, height, width, factor)


def _check(x, weight, bias, kind, size, factor) -> tuple[int, int]:
    op = "decode_map"
    checks.data(op, "x", x)
    if x.dim() != 4 or 0 in x.shape[1:]:
        checks.fail(op, "x", "of shape [n, C, h, w] with C, h, w >= 1", list(x.shape))
    channels = x.shape[1]
    if weight is not None:
        checks.tensor(op, "weight", weight)
        if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != channels:
            checks.fail(op, "weight", f"of shape [C_T, {channels}]", list(weight.shape))
        channels = weight.shape[0]
    if bias is not None:
        checks.tensor(op, "bias", bias)
        if weight is None:
            checks.fail(op, "bias", "None without a weight", "a tensor")
        if bias.shape != (channels,):
            checks.fail(op, "bias", f"of shape [{channels}]", list(bias.shape))
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            checks.same_dtype(op, name, parameter, x, "x")
            checks.on_device(op, name, parameter, x.device)
    if kind not in CHANNELS:
        checks.fail(op, "kind", f"one of {', '.join(CHANNELS)}", kind)
    if CHANNELS[kind] not in (None, channels):
        checks.fail(op, "kind", f"one that decodes {channels} channels", f"{kind} ({CHANNELS[kind]})")
    checks.integer(op, "factor", factor)
    if factor < 1:
        checks.fail(op, "factor", "at least 1", factor)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        checks.fail(op, "size", "a pair (H, W)", size, TypeError)
    height, width = size
    most = (factor * x.shape[2], factor * x.shape[3])
    if not (1 <= height <= most[0] and 1 <= width <= most[1]):
        checks.fail(op, "size", f"between (1, 1) and {most}", tuple(size))
    return height, width


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks.

    Every kind, with and without head, several factors and layouts.
    """
    draw = draws(len(size), dtype, device)

    def case(kind: str, rows: int, c: int, h: int, w: int, classes: int = 0, factor: int = 8) -> dict:
        x = draw(rows, c, h, w).contiguous(memory_format=torch.channels_last)
        out = dict(x=x, kind=kind, factor=factor, size=(factor * h - factor // 2, factor * w - factor // 3))
        return out | (dict(weight=draw(classes, c, scale=c**-0.5), bias=draw(classes)) if classes else {})

    if size == "large":
        return [case("argmax", 8, 512, 64, 64, 21)]
    if size == "tiny":
        return [
            case("value", 1, 1, 1, 1, factor=1), case("argmax", 0, 8, 2, 2, 3),
            case("sigmoid", 1, 8, 1, 1, 1) | dict(bias=None), case("unit", 1, 3, 1, 2, factor=3),
        ]  # fmt: skip
    cases = [
        case("argmax", 2, 40, 5, 7, 13), case("softmax", 1, 24, 3, 17, 2), case("sigmoid", 2, 16, 4, 4, 1, 3),
        case("unit", 2, 24, 6, 5, 3, 4), case("value", 3, 8, 2, 19, 1, 2), case("exp", 1, 1, 5, 3, factor=5),
    ]  # fmt: skip
    cases[2]["x"] = draw(4, 18, 4, 8)[::2, 1:-1, :, ::2]
    cases[4]["x"] = draw(3, 8, 2, 19)
    return cases


SPEC = add(
    OpSpec(
        name="decode_map",
        forward=Operator("decode_map", _SCHEMA, _reference),
        backward=None,
        function=decode_map,
        differentiable=(),
        samples=_samples,
    )
)
