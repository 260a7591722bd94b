"""Compute the condition's tokens from the initial maps of all tasks, and the first block's query.

Published: concatenate the maps, a 3x3 convolution to C channels, bilinear reduction by r, flatten. The
reduction (align_corners=False) is the mean of the 2x2 centre of every r x r block, so both steps are one
convolution whose weight `fold_reduction` makes: r = 4: 4x4, stride 4, no padding; r = 2: 4x4, stride 2,
padding 1; r = 1: the 3x3 itself. Nothing is concatenated and the map that the reduction would discard is not
computed.

Legend: B samples, K maps of C_k channels (C_t = sum C_k) and h x w pixels, r = reduction,
N = (h / r) (w / r) tokens, C width, D query width, p the patch of C_t k k values that a token is made of.

    tokens = p weight^T + bias
    query  = n query_weight^T,    n = LayerNorm(tokens) = xhat norm_weight + norm_bias

Gradients, with d_n = d_query query_weight and g = d_n norm_weight:

    d_tokens' = d_tokens + rstd (g - mean(g) - xhat mean(g xhat))

The maps' gradients are the transposed convolution of d_tokens', the others are products.

Numerics: arithmetic in float32, one rounding of the tokens; the query is computed from the rounded tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arithmetic import wide_dtype
from .autograd import recorded
from .grid import check_reduction
from .registry import Operator, OpSpec, add
from .samples import draws
from .tokens import epsilon, norm_backward, normalised, shaped

_SCHEMA = (
    "(Tensor[] maps, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor? query_weight, int reduction, float eps) -> (Tensor tokens, Tensor query)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_tokens, Tensor grad_query, Tensor[] maps, Tensor weight, Tensor tokens, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor? query_weight, int reduction, float eps, bool[] needed) "
    "-> Tensor[]"
)

GEOMETRY = {4: (4, 0), 2: (4, 1), 1: (3, 1)}
"""Reduction (which is the stride) -> kernel size and padding of the folded convolution."""


def fold_reduction(weight: Tensor, reduction: int) -> Tensor:
    """Return the 3x3 convolution and the bilinear reduction after it as the weight of one convolution.

    Args:
        weight: [C, C_t, 3, 3].
        reduction: 1, 2 or 4.

    Returns:
        [C, C_t, k, k], k = 4 (3 if reduction is 1), for a convolution of stride `reduction`; differentiable.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument has a wrong shape, or the reduction is not supported.
    """
    op = "fold_reduction"
    check_reduction(op, reduction)
    checks.tensor(op, "weight", weight)
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        checks.fail(op, "weight", "of shape [C, C_t, 3, 3]", list(weight.shape))
    if reduction == 1:
        return weight
    # The mean over the centre's four pixels: the 3x3 taps, shifted to each of them.
    shifts = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    first, *others = (F.pad(weight, shift) for shift in shifts)
    return sum(others, first) / 4


def empty_outputs(maps, weight, query_weight, reduction) -> tuple[Tensor, Tensor]:
    """Allocate tokens and query (empty without query_weight)."""
    samples, _, h, w = maps[0].shape
    count = (h // reduction) * (w // reduction)
    tokens = torch.empty((samples, count, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    return tokens, weight.new_empty(0 if query_weight is None else (samples, count, query_weight.shape[0]))


def empty_gradients(maps, weight, norm_weight, norm_bias, query_weight, needed) -> list[Tensor]:
    """Allocate gradients of the maps (channels_last), weight, bias, norm_weight, norm_bias and query_weight,
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


def _reference(
    maps, weight, bias, norm_weight, norm_bias, query_weight, reduction, eps
) -> tuple[Tensor, Tensor]:
    wide = wide_dtype(weight.dtype)
    bias = None if bias is None else bias.to(wide)
    x = torch.cat([m.to(wide) for m in maps], 1)
    grid = F.conv2d(x, weight.to(wide), bias, stride=reduction, padding=GEOMETRY[reduction][1])
    tokens, query = empty_outputs(maps, weight, query_weight, reduction)
    tokens.copy_(grid.flatten(2).transpose(1, 2))
    if query_weight is not None:
        n = normalised(tokens.to(wide), *_norm(norm_weight, norm_bias, weight), eps)
        query.copy_(n @ query_weight.to(wide).T)
    return tokens, query


def _norm(norm_weight, norm_bias, weight) -> tuple[Tensor, Tensor]:
    """Return LayerNorm's parameters in the dtype of the arithmetic; one and zero if they are missing."""
    one = torch.ones(weight.shape[0], dtype=wide_dtype(weight.dtype), device=weight.device)
    return (
        one if norm_weight is None else norm_weight.to(one.dtype),
        torch.zeros_like(one) if norm_bias is None else norm_bias.to(one.dtype),
    )


def _reference_backward(
    d_tokens, d_query, maps, weight, tokens, norm_weight, norm_bias, query_weight, reduction, eps, needed
) -> list[Tensor]:
    wide = wide_dtype(weight.dtype)
    d_tokens = d_tokens.to(wide)
    d_norm_weight = d_norm_bias = d_query_weight = None
    if query_weight is not None:
        d_query = d_query.to(wide)
        through, d_norm_weight, d_norm_bias, n = norm_backward(
            d_query @ query_weight.to(wide), tokens.to(wide), *_norm(norm_weight, norm_bias, weight), eps
        )
        d_query_weight = d_query.flatten(0, 1).T @ n.flatten(0, 1)
        d_tokens = d_tokens + through
    padding = GEOMETRY[reduction][1]
    x = torch.cat([m.to(wide) for m in maps], 1)
    d_grid = d_tokens.transpose(1, 2).unflatten(2, (x.shape[2] // reduction, x.shape[3] // reduction))
    stride, pad = (reduction, reduction), (padding, padding)
    need_maps = any(needed[: len(maps)])
    need_weight, need_bias = needed[len(maps) : len(maps) + 2]
    d_x, d_weight, _ = torch.ops.aten.convolution_backward(
        d_grid, x, weight.to(wide), None, stride, pad, (1, 1), False, (0, 0), 1,
        (need_maps, need_weight, False),
    )  # fmt: skip
    d_maps = d_x.split([m.shape[1] for m in maps], 1) if need_maps else [None] * len(maps)
    d_bias = d_tokens.sum((0, 1)) if need_bias else None
    found = [*d_maps, d_weight, d_bias, d_norm_weight, d_norm_bias, d_query_weight]
    outs = empty_gradients(maps, weight, norm_weight, norm_bias, query_weight, needed)
    return [out.copy_(d) if need else out for out, d, need in zip(outs, found, needed, strict=True)]


def condition_tokens(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    reduction: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    query_weight: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None]:
    """Compute the tokens of all tasks' maps, and the first cross block's query of them.

    Args:
        maps: K tensors [B, C_k, h, w] float32, bfloat16, float16 (or float64), any strides; h and w multiples
            of reduction. All other tensors are of their dtype.
        weight: [C, sum C_k, k, k] as `fold_reduction` makes it.
        bias: [C].
        reduction: 1, 2 or 4.
        norm_weight: [C], scale of the LayerNorm before the query.
        norm_bias: [C], its shift.
        query_weight: [D, C].
        eps: of the LayerNorm.

    Returns:
        (tokens [B, N, C], query [B, N, D]), contiguous, tokens in the order of the rows of the grid. The
        query is None without query_weight. Differentiable once, in every tensor.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    _check(maps, weight, bias, norm_weight, norm_bias, query_weight, reduction, eps)
    tokens, query = _call(list(maps), weight, bias, norm_weight, norm_bias, query_weight, reduction, eps)
    return tokens, None if query_weight is None else query


def _check(maps, weight, bias, norm_weight, norm_bias, query_weight, reduction, eps) -> None:
    op = "condition_tokens"
    check_reduction(op, reduction)
    if not isinstance(maps, (list, tuple)):
        checks.fail(op, "maps", "a list of tensors", type(maps).__name__, TypeError)
    if not maps:
        checks.fail(op, "maps", "at least one tensor", "none")
    first = maps[0]
    for i, x in enumerate(maps):
        checks.data(op, f"maps[{i}]", x)
        if x.dim() != 4 or 0 in x.shape[1:]:
            checks.fail(op, f"maps[{i}]", "of shape [B, C_k, h, w] with C_k, h, w >= 1", list(x.shape))
        b, _, h, w = first.shape
        shaped(op, f"maps[{i}]", x, first, "maps[0]", B=b, C_k=x.shape[1], h=h, w=w)
    for name, size in zip("hw", first.shape[2:], strict=True):
        if size % reduction:
            checks.fail(op, f"maps' {name}", f"a multiple of reduction {reduction}", size)
    if query_weight is None and not (norm_weight is None and norm_bias is None):
        checks.fail(op, "norm_weight and norm_bias", "None without query_weight", "a tensor")
    epsilon(op, eps)
    k, channels = GEOMETRY[reduction][0], sum(x.shape[1] for x in maps)
    checks.tensor(op, "weight", weight)
    width = weight.shape[0] if weight.dim() else 1
    shaped(op, "weight", weight, first, "maps[0]", C=width, C_t=channels, k=k, k_=k)
    for name, x in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if x is not None:
            shaped(op, name, x, first, "maps[0]", C=width)
    if query_weight is not None:
        checks.tensor(op, "query_weight", query_weight)
        rows = query_weight.shape[0] if query_weight.dim() else 1
        shaped(op, "query_weight", query_weight, first, "maps[0]", D=rows, C=width)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks: all reductions, with and without query, several layouts."""
    draw = draws(len(size), dtype, device)

    def case(
        samples: int, channels: Sequence[int], h: int, w: int, width: int, query: int, reduction: int
    ) -> dict:
        k, total = GEOMETRY[reduction][0], sum(channels)
        out: dict = dict(weight=draw(width, total, k, k, scale=(total * k * k) ** -0.5), bias=draw(width))
        out |= dict(maps=[draw(samples, c, h, w) for c in channels], reduction=reduction)
        if query:
            out |= dict(norm_weight=draw(width), norm_bias=draw(width))
            out |= dict(query_weight=draw(query, width, scale=width**-0.5))
        return out

    if size == "large":
        return [case(8, (21, 7, 2, 3, 1), 64, 64, 512, 512, 4)]
    if size == "tiny":
        return [
            case(1, (1,), 1, 1, 8, 8, 1),
            case(1, (2, 1), 2, 4, 8, 0, 2),
            case(1, (1, 1), 4, 4, 8, 8, 4) | dict(bias=None),
            case(0, (3, 2), 4, 4, 8, 8, 4),
        ]
    cases = [
        case(2, (5, 1, 3), 12, 20, 40, 24, 4),
        case(3, (2, 7), 6, 10, 24, 16, 2),
        case(1, (4, 1, 2), 5, 7, 16, 0, 1),
        case(2, (3, 17), 8, 4, 72, 40, 4) | dict(norm_bias=None),
    ]
    cases[0]["maps"][0] = cases[0]["maps"][0].to(memory_format=torch.channels_last)
    cases[1]["maps"] = [draw(6, c + 2, 6, 20)[::2, 1:-1, :, ::2] for c in (2, 7)]
    cases[2]["maps"][1] = draw(7, 5, 4, 1).permute(3, 2, 1, 0)[:, :1]
    return cases


SPEC = add(
    OpSpec(
        name="condition_tokens",
        forward=Operator("condition_tokens", _SCHEMA, _reference),
        backward=Operator("condition_tokens_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=condition_tokens,
        differentiable=("maps", "weight", "bias", "norm_weight", "norm_bias", "query_weight"),
        samples=_samples,
    )
)
_call = recorded(SPEC)
