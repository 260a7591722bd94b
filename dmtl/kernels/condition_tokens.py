"""Parts shared by the adapters of condition_tokens: parameters of a call, and the backward pass.

The backward pass consists of library products and two kernels that take patches out of the maps and put them
back.

Kernels take maps of any strides as they are; everything else is made contiguous.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmtl.kernels.native import Native
from dmtl.ops.condition_tokens import GEOMETRY, empty_gradients, empty_outputs
from dmtl.ops.tokens import norm_backward

MOST_MAPS = 16


def shapes(maps, *_) -> list[str]:
    """Return reasons against a call's shapes."""
    return [f"{len(maps)} maps are more than {MOST_MAPS}"] if len(maps) > MOST_MAPS else []


def backward_shapes(d_tokens, d_query, maps, *_) -> list[str]:
    """Return reasons against a backward call's shapes."""
    return shapes(maps)


def geometry(maps: list[Tensor], weight: Tensor, reduction: int) -> dict:
    """Return the fields that say where the maps lie and which patches are taken of them."""
    samples, _, h, w = maps[0].shape
    first = [sum(m.shape[1] for m in maps[:i]) for i in range(len(maps))]
    strides = zip("bcyx", zip(*(m.stride() for m in maps), strict=True), strict=True)
    return {f"stride_{axis}": steps for axis, steps in strides} | dict(
        maps=maps, first=first, map_count=len(maps), channels=weight.shape[1],
        samples=samples, grid_h=h // reduction, grid_w=w // reduction,
        reduction=reduction, side=GEOMETRY[reduction][0], padding=GEOMETRY[reduction][1],
    )  # fmt: skip


_UNUSED = dict.fromkeys((
    "weight", "bias", "norm_weight", "norm_bias", "query_weight", "tokens", "query", "patches", "stats",
    "d_tokens", "d_query", "d_weight", "d_bias", "d_norm_weight", "d_norm_bias", "d_query_weight",
))  # fmt: skip
_UNUSED |= dict(query_width=0, width=0, eps=0.0, d_maps=[])


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def norm_parameters(
    norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return LayerNorm's parameters, ones and zeros for missing ones."""
    width = weight.shape[0]
    return (
        weight.new_ones(width) if norm_weight is None else norm_weight.contiguous(),
        weight.new_zeros(width) if norm_bias is None else norm_bias.contiguous(),
    )


def forward(
    native: Native, maps, weight, bias, norm_weight, norm_bias, query_weight, reduction, eps
) -> tuple[Tensor, Tensor]:
    """Run the native kernel `condition_tokens`."""
    tokens, query = empty_outputs(maps, weight, query_weight, reduction)
    if tokens.numel():
        weight, bias, query_weight = map(contiguous, (weight, bias, query_weight))
        fields = _UNUSED | geometry(maps, weight, reduction)
        fields |= dict(weight=weight, bias=bias, width=weight.shape[0], tokens=tokens)
        if query_weight is not None:
            norm_weight, norm_bias = norm_parameters(norm_weight, norm_bias, weight)
            fields |= _query_fields(tokens, query_weight, eps)
            fields |= dict(norm_weight=norm_weight, norm_bias=norm_bias, query=query)
        native.call("condition_tokens", weight, **fields)
    return tokens, query


def _query_fields(tokens: Tensor, query_weight: Tensor, eps: float) -> dict:
    stats = tokens.new_empty((*tokens.shape[:2], 2), dtype=torch.float32)
    return dict(query_weight=query_weight, query_width=query_weight.shape[0], eps=eps, stats=stats)


def native_backward(
    native: Native, d_tokens, d_query, maps, weight, tokens, norm_weight, norm_bias, query_weight, reduction,
    eps, needed,
) -> list[Tensor]:  # fmt: skip
    """Run the native kernel `condition_tokens_backward`."""
    outs = empty_gradients(maps, weight, norm_weight, norm_bias, query_weight, needed)
    if not tokens.numel():
        return [out.zero_() for out in outs]
    targets = [out if need else None for out, need in zip(outs, needed, strict=True)]
    names = ("d_weight", "d_bias", "d_norm_weight", "d_norm_bias", "d_query_weight")
    weight, tokens = weight.contiguous(), tokens.contiguous()
    fields = _UNUSED | geometry(maps, weight, reduction)
    fields |= dict(weight=weight, width=weight.shape[0], tokens=tokens, d_tokens=d_tokens.contiguous())
    if query_weight is not None:
        norm_weight, norm_bias = norm_parameters(norm_weight, norm_bias, weight)
        d_query, query_weight = d_query.contiguous(), query_weight.contiguous()
        fields |= _query_fields(tokens, query_weight, eps)
        fields |= dict(norm_weight=norm_weight, norm_bias=norm_bias, d_query=d_query)
    fields["d_maps"] = targets[: len(maps)]
    fields |= dict(zip(names, targets[len(maps) :], strict=True))
    native.call("condition_tokens_backward", weight, **fields)
    return outs


def take(native: Native, maps: list[Tensor], weight: Tensor, reduction: int) -> Tensor:
    """Return the patches [B N, C_t k k], by the native kernel `condition_tokens_take`."""
    where = geometry(maps, weight, reduction)
    patches = weight.new_empty(where["samples"] * where["grid_h"] * where["grid_w"], weight[0].numel())
    native.call("condition_tokens_take", weight, **(_UNUSED | where | dict(patches=patches)))
    return patches


def put(
    native: Native, d_patches: Tensor, d_maps: list[Tensor | None], maps, weight: Tensor, reduction: int
) -> None:
    """Write the gradients of the maps that d_maps has a place for, by the native kernel
    `condition_tokens_put`."""
    fields = _UNUSED | geometry(maps, weight, reduction) | dict(patches=d_patches, d_maps=d_maps)
    native.call("condition_tokens_put", weight, **fields)


def library_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (d_x + residual, d_weight, d_bias, LayerNorm(x)) for grad and x [rows, C]."""
    d_x, d_weight, d_bias, normed = norm_backward(grad, x, weight, bias, eps)
    return d_x + residual, d_weight, d_bias, normed


def library_backward(
    take: Callable, put: Callable, norm_backward: Callable, d_tokens, d_query, maps, weight, tokens,
    norm_weight, norm_bias, query_weight, reduction, eps, needed,
) -> list[Tensor]:  # fmt: skip
    """Compute the backward pass with the library's products.

    take(maps, weight, reduction) -> patches [B N, C_t k k]; put(d_patches, d_maps, maps, weight, reduction)
    writes those of d_maps that are not None; norm_backward as `library_norm_backward`.
    """
    outs = empty_gradients(maps, weight, norm_weight, norm_bias, query_weight, needed)
    if not tokens.numel():
        return [out.zero_() for out in outs]
    count, width = len(maps), weight.shape[0]
    need_weight, need_bias, _, _, need_query_weight = needed[count:]
    d_weight = d_bias = d_norm_weight = d_norm_bias = d_query_weight = None
    d_tokens = d_tokens.reshape(-1, width).contiguous()
    if query_weight is not None:
        # What the tokens' gradient is made of stays in float32 until it has been added up.
        d_query = d_query.reshape(-1, d_query.shape[-1])
        d_n, norm = (d_query @ query_weight).float(), norm_parameters(norm_weight, norm_bias, weight)
        d_tokens, d_norm_weight, d_norm_bias, n = norm_backward(
            d_n, tokens.reshape(-1, width).float(), *(x.float() for x in norm), eps, d_tokens.float()
        )
        d_query_weight = d_query.T @ n.to(d_query.dtype) if need_query_weight else None
    if need_bias:
        d_bias = d_tokens.sum(0)
    d_tokens = d_tokens.to(weight.dtype)
    if need_weight:
        d_weight = (d_tokens.T @ take(maps, weight, reduction)).view(weight.shape)
    parameters = (d_weight, d_bias, d_norm_weight, d_norm_bias, d_query_weight)
    for out, found, need in zip(outs[count:], parameters, needed[count:], strict=True):
        if need and found is not None:
            out.copy_(found)
    d_maps = [out if need else None for out, need in zip(outs[:count], needed[:count], strict=True)]
    if any(needed[:count]):
        put((d_tokens @ weight.reshape(width, -1)).contiguous(), d_maps, maps, weight, reduction)
    return outs
