"""What the op tests and the benchmarks share: backends that run here, calls with gradients, errors, recorded
operator calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dmtl.ops
from dmtl.ops._registry import BACKENDS, REGISTRY, OpSpec, reasons_against

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def backend_params(*names: str) -> list:
    """pytest parameters for the backends, each skipped where it cannot run."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(missing(name)), reason=missing(name)))
        for name in names or BACKENDS
    ]


def missing(backend: str) -> str:
    """Why the backend cannot run here, or an empty string."""
    probe = [torch.empty(0, device=DEVICE)]
    return "; ".join(
        reason for spec in REGISTRY.values() for reason in reasons_against(spec, backend, probe)[:1]
    )


def to_dtype(sample: dict, names: tuple[str, ...], dtype: torch.dtype) -> dict:
    """The sample with the differentiable arguments in another dtype, as fresh leaves that keep their
    strides."""
    return sample | {
        name: sample[name].detach().to(dtype).clone().requires_grad_()
        for name in names
        if sample.get(name) is not None
    }


def run(spec: OpSpec, sample: dict, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Output and gradients of one call on the named backend; the incoming gradient is a fixed function of the
    shape."""
    sample = to_dtype(sample, spec.differentiable, dtype)
    leaves = [name for name in spec.differentiable if sample.get(name) is not None]
    with dmtl.ops.use_backend(backend):
        out = spec.function(**sample)
        grad = torch.linspace(-1, 1, max(out.numel(), 1), device=out.device)[: out.numel()].reshape(out.shape)
        grads = torch.autograd.grad(
            out, [sample[name] for name in leaves], grad.to(torch.float16).to(out.dtype)
        )
    return {"out": out.detach()} | {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def errors(actual: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute error of each entry, relative to the largest true value (at least 1)."""
    return {
        name: float((actual[name].double() - true.double()).abs().max() / max(1.0, float(true.abs().max())))
        if true.numel()
        else 0.0
        for name, true in truth.items()
    }


class Recorder(TorchDispatchMode):
    """Collects the calls of dmtl's torch operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dmtl":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
