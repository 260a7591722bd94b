"""Arithmetic precision: names of precisions, TF32, and mixed precision of the fused operators.

Under `torch.autocast`, fused operators compute in its dtype, like torch's own matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> dtype of stored values."""


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16: GPUs since Ampere, CPUs with AVX-512 BF16 or AMX.

    Otherwise PyTorch emulates bf16; with AVX2, a training step then takes more than seven times as long as in
    fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def training_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": "bf16" if the device has instructions for it, otherwise "fp32".

    Other names are kept.
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else "fp32"


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in torch's float32 products and convolutions in this context.

    No effect on a CPU.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        products.allow_tf32 = convolutions.allow_tf32 = allowed
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@overload
def cast(x: Tensor) -> Tensor: ...


@overload
def cast(x: None) -> None: ...


def cast(x: Tensor | None) -> Tensor | None:
    """Cast x to autocast's dtype if autocast is on for its device."""
    if x is None or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def cast_all(xs: Sequence[Tensor]) -> list[Tensor]:
    """Apply `cast` to each tensor."""
    return [cast(x) for x in xs]


Weights = list[tuple[nn.Module, str, Tensor]]
"""List of (module, name of its parameter, tensor that replaces the parameter)."""


def lower(
    module: nn.Module, copies: int = 1, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
) -> list[Weights]:
    """Cast a module's weights to autocast's dtype, all of them in one operator.

    Otherwise autocast, or the fused operators, would cast each weight and bias at every use. Use each copy
    only once: the gradients of all copies are added up in the dtype of the parameters.

    Args:
        module: the module whose weights are cast.
        copies: number of copies.
        kinds: classes of modules whose parameters are cast. Other classes may use theirs in unknown ways.

    Returns:
        The weights of each copy, for `using`. They are empty if there is nothing to cast: without autocast,
        without gradients, or for compiled modules, whose compiler casts the weights.
    """
    device = next((p.device.type for p in module.parameters()), "cpu")
    lowers = torch.is_grad_enabled() and torch.is_autocast_enabled(device)
    if not lowers or torch.compiler.is_compiling() or any(m._compiled_call_impl for m in module.modules()):
        return [[] for _ in range(copies)]
    places = [
        (part, name, parameter)
        for part in module.modules()
        if isinstance(part, kinds) and type(part).__module__.startswith(("torch.nn.", "dmtl."))
        for name, parameter in part.named_parameters(recurse=False)
    ]
    if not places:
        return [[] for _ in range(copies)]
    found = _Lower.apply(torch.get_autocast_dtype(device), copies, *[parameter for *_, parameter in places])
    each = zip(*[iter(found)] * len(places), strict=True)
    return [[(part, name, x) for (part, name, _), x in zip(places, xs, strict=True)] for xs in each]


@contextmanager
def using(weights: Weights) -> Iterator[None]:
    """Replace parameters by these weights in this context."""
    own = [part._parameters[name] for part, name, _ in weights]
    try:
        for part, name, x in weights:
            part._parameters[name] = x  # type: ignore[assignment]
        yield
    finally:
        for (part, name, _), parameter in zip(weights, own, strict=True):
            part._parameters[name] = parameter


def lowered(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which the module computes with weights of autocast's dtype (`lower`)."""
    return using(lower(module)[0])


class _Lower(torch.autograd.Function):
    """Cast tensors to a lower dtype, making several copies; see `lower`."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, copies: int, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.likes = [dict(size=x.shape, stride=x.stride(), dtype=x.dtype, device=x.device) for x in xs]
        lowered = [torch.empty_like(x, dtype=dtype) for x in xs]
        torch._foreach_copy_(lowered, xs)
        found = [x if copy == 0 else x.detach() for copy in range(copies) for x in lowered]
        frozen = [not x.requires_grad for x in xs] * copies
        ctx.mark_non_differentiable(*[x for x, stays in zip(found, frozen, strict=True) if stays])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        sums: list[Tensor | None] = [None] * len(ctx.likes)
        for first in range(0, len(grads), len(sums)):
            given = {i: g for i, g in enumerate(grads[first : first + len(sums)]) if g is not None}
            if not given:
                continue
            wide = [torch.empty_strided(**ctx.likes[i]) for i in given]
            torch._foreach_copy_(wide, list(given.values()))
            known = [(total, x) for i, x in zip(given, wide, strict=True) if (total := sums[i]) is not None]
            if known:
                torch._foreach_add_(*map(list, zip(*known, strict=True)))
            for i, x in zip(given, wide, strict=True):
                sums[i] = x if sums[i] is None else sums[i]
        return None, None, *sums


def sources(node: Any, output: int) -> list[tuple[Any, int]]:
    """Return the autograd functions, each with the number of its output, from which an output was computed.

    An output of `lower`, which casts many tensors, comes only from its own input.
    """
    following = list(node.next_functions)
    return [following[output % len(following)]] if isinstance(node, _Lower._backward_cls) else following
