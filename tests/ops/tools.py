"""What the op tests and the benchmarks share: backends that run here, calls with gradients, errors, recorded
operator calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import dmtl.ops
from dmtl.ops.registry import BACKENDS, REGISTRY, OpSpec, reasons_against
from dmtl.runtime import native

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FOR_CPUS = ("batch_norm", "depthwise_conv", "inverted_residual", "pointwise_conv")
"""Ops that speed up training on a CPU alone: on a GPU the modules that use them call the library."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def backend_params(*names: str, op: str | None = None, slow: str = "") -> list:
    """pytest parameters for the backends, each skipped where it cannot run the op (or any op). `slow` is one
    that only `make test-all` runs: Triton's interpreter takes seconds for what others do in milliseconds."""
    return [
        pytest.param(
            name,
            marks=[
                pytest.mark.skipif(bool(missing(name, op)), reason=missing(name, op)),
                *([pytest.mark.slow] if name == slow else []),
            ],
        )
        for name in names or BACKENDS
    ]


def missing(backend: str, op: str | None = None) -> str:
    """Why the backend cannot run the op (or any op) here at all, or an empty string. An op that the backend
    has no kernel for is another matter: see `serves`."""
    probe = [torch.empty(0, device=DEVICE)]
    specs = [REGISTRY[op]] if op else REGISTRY.values()
    reasons = [reasons_against(spec, backend, probe) for spec in specs]
    return "" if any(not found for found in reasons) else "; ".join(reasons[0][:1])


def serves(spec: OpSpec, backend: str, dtype: torch.dtype, sample: dict | None = None) -> str:
    """Why the backend does not serve the op in this dtype (and for this sample's shapes), or an empty
    string."""
    reasons = reasons_against(spec, backend, [torch.empty(0, dtype=dtype, device=DEVICE)])
    if not reasons and sample is not None:
        with Recorder() as recorder, torch.no_grad(), dmtl.ops.use_backend("reference"):
            spec.function(**to_dtype(sample, spec.differentiable, dtype))
        for func, args in recorder.calls:
            if func.name() == f"dmtl::{spec.forward.name}":
                reasons = reasons_against(spec, backend, [], spec.forward, args)
    return "; ".join(reasons)


def to_dtype(sample: dict, names: tuple[str, ...], dtype: torch.dtype) -> dict:
    """The sample with the differentiable arguments (tensors or lists) in another dtype, as fresh leaves that
    keep their strides. Other floating arguments [.., ..] follow where the op has no gradients at all."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype).clone().requires_grad_()

    changed = {}
    for name in names:
        value = sample.get(name)
        if value is not None:
            changed[name] = [leaf(x) for x in value] if isinstance(value, list) else leaf(value)
    if not names:
        changed = tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, sample)
    return sample | changed


def leaves_of(spec: OpSpec, sample: dict) -> dict[str, Tensor]:
    """The differentiable tensors of a sample by name; entries of a list as name[0], name[1], ..."""
    found = {}
    for name in spec.differentiable:
        value = sample.get(name)
        if isinstance(value, list):
            found |= {f"{name}[{i}]": x for i, x in enumerate(value)}
        elif value is not None:
            found[name] = value
    return found


def outputs(result) -> list[Tensor]:
    """A function's results as a list, without the absent ones."""
    return [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]


def run(spec: OpSpec, sample: dict, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Outputs and gradients of one call on the named backend; the incoming gradients are a fixed function of
    the shapes."""
    sample = to_dtype(sample, spec.differentiable, dtype)
    leaves = leaves_of(spec, sample)
    with dmtl.ops.use_backend(**{spec.name: backend}):
        outs = outputs(spec.function(**sample))
        grads = ()
        with_gradient = [out for out in outs if out.requires_grad]  # statistics of a batch have none
        if leaves:
            incoming = [
                torch.linspace(-1, 1, max(out.numel(), 1), device=out.device)[: out.numel()]
                .reshape(out.shape)
                .to(torch.float16)
                .to(out.dtype)
                for out in with_gradient
            ]
            grads = torch.autograd.grad(
                with_gradient, list(leaves.values()), incoming, materialize_grads=True
            )
    named = {"out" if i == 0 else f"out {i}": out.detach() for i, out in enumerate(outs)}
    return named | {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def errors(actual: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute error of each entry, relative to the largest true value (at least 1). Integers (class
    ids): the share of entries that differ."""
    return {name: _error(actual[name], true) for name, true in truth.items()}


def _error(actual: Tensor, true: Tensor) -> float:
    if not true.numel():
        return 0.0
    if not true.is_floating_point():
        return float((actual != true).float().mean())
    return float((actual.double() - true.double()).abs().max() / max(1.0, float(true.abs().max())))


class Recorder(TorchDispatchMode):
    """Collects the calls of dmtl's torch operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dmtl":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def on_every_instruction_set(call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """The results of a call of C++ kernels, after checking that all instruction sets give the same bits."""
    core = native.core()
    best, expected = core.isa(), call()
    try:
        for isa in core.isas():
            core.use_isa(isa)
            assert all(torch.equal(*pair) for pair in zip(call(), expected, strict=True)), isa
    finally:
        core.use_isa(best)
    return expected


def on_any_number_of_threads(call: Callable[[], Sequence[Tensor]]) -> None:
    """Check that a call of C++ kernels gives the same bits with 1, 2 and 3 threads."""
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(call())
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
