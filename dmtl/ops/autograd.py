"""Connect operators with their backward passes by the names in their schemas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .registry import OpSpec


def recorded(
    spec: OpSpec,
    keep: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    through: str | None = None,
) -> Callable:
    """Return the forward operator as a function that autograd records.

    It takes the operator's positional arguments. Without a gradient to record it calls the operator.
    Otherwise its backward pass calls the backward operator, whose argument names say what each one is:

        grad               gradient of the first result
        grad_<result>      gradient of the result of this name
        need_<input>       whether the gradient of this input is wanted (for a list: of any of its tensors)
        needed             the same for every differentiable tensor, lists laid flat
        <input>, <result>  what the operator got or returned under this name, kept from the forward pass

    It returns the gradients of the inputs in `spec.differentiable`, in this order (with `needed`: as one flat
    list). A result after the first that has no `grad_<result>` is not differentiable.

    An operator whose last argument is `save` returns, if that is True, what its backward pass needs after its
    first result. The function supplies this argument and returns only the first result.

    Args:
        spec: an operation that is registered.
        keep: changes the values of inputs and results, by name, before some of them are kept.
        through: the input whose gradient is `grad` itself, which the backward operator does not return.
    """
    assert spec.backward is not None
    run, run_backward = (getattr(torch.ops.dmtl, o.name) for o in (spec.forward, spec.backward))
    differentiable = [name for name in spec.differentiable if name != through]
    inputs = [argument.name for argument in run.default._schema.arguments]
    results = [result.name for result in run.default._schema.returns]
    asked = [argument.name for argument in run_backward.default._schema.arguments]
    grads = ["grad", *(f"grad_{result}" for result in results)]
    needs = ["needed", *(f"need_{argument}" for argument in inputs)]
    kept = [argument for argument in asked if argument not in grads and argument not in needs]
    constant = [i for i, result in enumerate(results) if i > 0 and f"grad_{result}" not in asked]
    leaves = [inputs.index(argument) for argument in spec.differentiable]
    save = inputs[-1] == "save"

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, lengths: Any, *flat: Any) -> Any:
            args = _nested(flat, lengths)
            found = run(*args, True) if save else run(*args)
            found = found if isinstance(found, tuple) else (found,)
            values = dict(zip(inputs, args, strict=False)) | dict(zip(results, found, strict=True))
            values = keep(values) if keep else values
            saved, ctx.saved_lengths = _flat([values[name] for name in kept])
            ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in saved])
            ctx.others = [None if isinstance(x, Tensor) else x for x in saved]
            ctx.lengths = lengths
            if save or len(found) == 1:
                return found[0]
            if constant:
                ctx.mark_non_differentiable(*[found[i] for i in constant])
                # Otherwise autograd would make zeros as their gradients.
                ctx.set_materialize_grads(len(found) - len(constant) > 1)
            return found

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *incoming: Any) -> Any:
            if incoming[0] is None:  # of the only result that has a gradient
                return (None,) * len(ctx.needs_input_grad)
            wanted = dict(zip(inputs, _nested(ctx.needs_input_grad[1:], ctx.lengths), strict=False))
            # Read once: under activation checkpointing every access computes them again.
            saved = ctx.saved_tensors
            saved = [other if x is None else x for x, other in zip(saved, ctx.others, strict=True)]
            values = dict(zip(kept, _nested(saved, ctx.saved_lengths), strict=True))
            values |= {"grad": incoming[0]} | dict(zip(grads[1:], incoming, strict=False))
            values |= {f"need_{name}": any(w) if isinstance(w, list) else w for name, w in wanted.items()}
            values["needed"], lengths = _flat([wanted[name] for name in differentiable])
            found = run_backward(*[values[name] for name in asked])
            if "needed" in asked:
                found = _nested(found, lengths)
            found = dict(zip(differentiable, found if len(differentiable) > 1 else [found], strict=True))
            found |= {through: incoming[0]} if through else {}
            gradients: list[Tensor | None] = []
            for name, want in wanted.items():
                d = found.get(name)
                if isinstance(want, list):
                    gradients += d or [None] * len(want)
                else:
                    gradients.append(d if want else None)
            return None, *gradients

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(_requires_grad(args[i]) for i in leaves):
            flat, lengths = _flat(args)
            return Recorded.apply(lengths, *flat)
        return run(*args, False)[0] if save else run(*args)

    return call


def _requires_grad(value: Tensor | Sequence[Tensor] | None) -> bool:
    if isinstance(value, (list, tuple)):
        return any(x.requires_grad for x in value)
    return isinstance(value, Tensor) and value.requires_grad


def _flat(values: Sequence) -> tuple[list, tuple[int | None, ...]]:
    """Return the values with lists laid flat, and the length of each list (None: not a list)."""
    flat: list = []
    lengths: list[int | None] = []
    for value in values:
        listed = isinstance(value, (list, tuple))
        flat += value if listed else [value]
        lengths.append(len(value) if listed else None)
    return flat, tuple(lengths)


def _nested(flat: Sequence, lengths: Sequence[int | None]) -> list:
    """Undo `_flat`."""
    values, start = [], 0
    for length in lengths:
        values.append(flat[start] if length is None else list(flat[start : start + length]))
        start += 1 if length is None else length
    return values
