"""Register operators, and choose the backend that serves a call.

An operator's module declares an `OpSpec`; `add` registers its operators with torch. The backend is chosen
inside the operator, below the dispatcher: graphs, exports and checkpoints never name one. This is the only
module that reaches `dmtl.kernels`, which it loads by name: kernels import the specifications that they
implement.

Choice, strongest first: `use_backend(op="name")`, `use_backend("name")`, `DMTL_BACKEND_<OP>`, `DMTL_BACKEND`,
automatic (the first of `AUTOMATIC` that can serve the call; for some operators, the fastest that can). An
explicit choice succeeds or raises NotImplementedError with every candidate's reasons.
Overrides are global to the process, because backward passes run on other threads.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmtl.errors import BackendError, ConfigError
from dmtl.runtime.measure import Fastest
from dmtl.runtime.support import Support, why_not

BACKENDS = ("cuda", "triton", "cpu", "reference")
# What automatic choice tries for tensors of a device type. (Triton's interpreter serves CPU tensors, for
# those who ask for it.)
AUTOMATIC = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_REFERENCE = Support(
    devices=("cpu", "cuda", "mps", "xpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16, torch.float64),
)


@dataclass(frozen=True)
class Operator:
    """One torch operator `dmtl::<name>`.

    `schema` lacks the name. The reference takes the same positional arguments.
    """

    name: str
    schema: str
    reference: Callable
    # Shapes for the compiler; the reference itself, on tensors without data, unless another is given.
    fake: Callable | None = None
    # Called with the operator's arguments when its tensors are on the CPU.
    check_values: Callable | None = None
    # Called with the operator's arguments: the kind of call. Where given, automatic choice on the devices of
    # `MEASURED` takes the fastest backend, timed once for each kind (`dmtl.runtime.measure`).
    kind: Callable[..., Hashable] | None = None


@dataclass(frozen=True, eq=False)
class OpSpec:
    """A mathematical operation: its forward and backward operators, and what the generic tests need.

    Attributes:
        name: its name.
        forward: the forward operator.
        backward: the backward operator; None if the operation has no gradients.
        function: the public function.
        differentiable: arguments of the function that have a gradient: tensors or lists of tensors.
        samples: (size, dtype, device) -> list of keyword arguments for `function`; size is "tiny", "odd" or
            "large".
        tolerance: absolute floor of the error allowed to a backend, by dtype.
        variants: other forms of the operation without gradients, such as `<op>_`, which works in place.
    """

    name: str
    forward: Operator
    backward: Operator | None
    function: Callable
    differentiable: tuple[str, ...]
    samples: Callable[[str, torch.dtype, str], list[dict]]
    tolerance: dict[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
    )
    variants: tuple[Operator, ...] = ()


_LIBRARY = torch.library.Library("dmtl", "DEF")
MEASURED = ("cuda",)
REGISTRY: dict[str, OpSpec] = {}
_fastest = Fastest(name="operators")
_overrides: list[dict[str, str]] = []
_announced: set[str] = set()
_served: dict[str, Callable] = {}  # by the operator's name
_NO_KERNEL = "has no kernel for this operator"


def add(spec: OpSpec) -> OpSpec:
    """Register the spec and its operators with torch. One that works in place writes its first argument."""
    REGISTRY[spec.name] = spec
    for operator in filter(None, (spec.forward, spec.backward, *spec.variants)):
        name, run = operator.name, partial(_run, spec, operator)
        _served[name] = partial(_run, spec, operator, check=False)
        _LIBRARY.define(name + operator.schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # on every device, below autograd
        if operator.schema.startswith("(Tensor(a!)"):
            _LIBRARY.impl(name, partial(_announced_write, name), "ADInplaceOrView", with_keyset=True)
        torch.library.register_fake(f"dmtl::{name}", operator.fake or operator.reference, lib=_LIBRARY)
    return spec


def _announced_write(name: str, keyset: torch._C.DispatchKeySet, written: Tensor, *args: object) -> object:
    """Tell autograd that the first argument changes, so that a backward pass that saved it fails."""
    torch.autograd.graph.increment_version(written)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        operator = getattr(torch.ops.dmtl, name).default
        return operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, written, *args)


@cache
def _module(op: str, backend: str) -> ModuleType | str:
    """Import the backend's module for this operator, or return the reason why there is none."""
    name = f"dmtl.kernels.{backend}.{op}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            return _NO_KERNEL
        return f"cannot be imported ({error})"
    except ImportError as error:
        return f"cannot be imported ({error})"


def reasons_against(
    spec: OpSpec,
    backend: str,
    tensors: Sequence[Tensor],
    operator: Operator | None = None,
    args: Sequence = (),
) -> list[str]:
    """Return why `backend` cannot serve a call of the op with these data tensors; empty when it can.

    operator, args: the call itself, if the shapes of its arguments matter too.
    """
    if backend == "reference":
        return why_not(_REFERENCE, tensors)
    module = _module(spec.name, backend)
    if isinstance(module, str):
        return [module]
    return why_not(module.SUPPORT, tensors, args if operator else None, backward=operator is spec.backward)


def requested(op: str) -> tuple[str, str] | None:
    """Return (backend, who asked for it), or None if the choice is automatic."""
    for scope in (op, "*"):
        for override in reversed(_overrides):
            if scope in override:
                return override[scope], "dmtl.use_backend"
    for variable in (f"DMTL_BACKEND_{op.upper()}", "DMTL_BACKEND"):
        if value := os.environ.get(variable, "").strip().lower():
            if value not in BACKENDS:
                raise ConfigError(f"{variable} must be one of {', '.join(BACKENDS)}, got {value}")
            return value, variable
    return None


def choices() -> tuple:
    """Return everything that a user can set to choose backends, as a key of computations that used them."""
    names = ("DMTL_BACKEND", *(f"DMTL_BACKEND_{op.upper()}" for op in REGISTRY))
    overrides = tuple(tuple(override.items()) for override in _overrides)
    return overrides, tuple(os.environ.get(name) for name in names)


def candidates(spec: OpSpec, device_type: str) -> tuple[str, ...]:
    """Return the backends to try for a call, best first."""
    wish = requested(spec.name)
    return (wish[0],) if wish else AUTOMATIC.get(device_type, ("reference",))


def choose(
    spec: OpSpec, tensors: Sequence[Tensor], operator: Operator | None = None, args: Sequence = ()
) -> str:
    """Return the name of the backend that serves this call.

    Raises:
        NotImplementedError: none does; the message has all reasons.
    """
    passed_over: list[str] = []
    for backend in candidates(spec, tensors[0].device.type):
        if not reasons_against(spec, backend, tensors, operator, args):
            if passed_over:
                _announce(spec, backend, passed_over)
            return backend
        passed_over.append(backend)
    raise BackendError(_refusal(spec, tensors, operator, args))


def _refusal(spec: OpSpec, tensors: Sequence[Tensor], operator: Operator | None, args: Sequence) -> str:
    wish = requested(spec.name)
    inputs = ", ".join(f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)} on {x.device}" for x in tensors)
    asked = f"backend {wish[0]} (requested by {wish[1]}) cannot serve" if wish else "no backend can serve"
    lines = [f"{spec.name}: {asked} this call with {inputs}. Candidates:"]
    for backend in BACKENDS:
        reasons = reasons_against(spec, backend, tensors, operator, args)
        lines.append(f"  {backend}: {'; '.join(reasons) or 'could serve it'}")
    return "\n".join(lines)


def _announce(spec: OpSpec, backend: str, passed_over: list[str]) -> None:
    """Warn once that a faster backend made for this device is missing on this machine."""
    for other in passed_over:
        module = _module(spec.name, other)
        reasons = [module] if isinstance(module, str) else module.SUPPORT.available()
        for reason in reasons:
            if reason != _NO_KERNEL and reason not in _announced:  # some ops need no kernel of some backends
                _announced.add(reason)
                warnings.warn(
                    f"dmtl: backend {other} is not available ({reason}); {spec.name} uses {backend}. "
                    "`dmtl info` shows the choice for every operator.",
                    RuntimeWarning,
                    stacklevel=4,
                )


def _floating(args: Sequence) -> list[Tensor]:
    """Return the floating tensors among an operator's arguments, lists included."""
    flat = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    return [x for x in flat if isinstance(x, Tensor) and x.is_floating_point()]


def serve(overload: torch._ops.OpOverload) -> Callable:
    """Return what runs below the dispatcher for one of our operators, without the check of values."""
    return _served[overload._schema.name.removeprefix("dmtl::")]


def _run(spec: OpSpec, operator: Operator, *args: Any, check: bool = True) -> Any:
    tensors = _floating(args)
    # What the op computes on, without the tables of coefficients (which stay float32).
    data = [x for x in tensors if x.dim() > 1 or x is tensors[0]]
    if check and operator.check_values is not None and data[0].device.type == "cpu":
        operator.check_values(*args)
    backend = choose(spec, data, operator, args)
    device = data[0].device
    if operator.kind is not None and device.type in MEASURED and requested(spec.name) is None:
        backend = _measured(spec, operator, data, args)
    return _implementation(spec, operator, backend)(*args)


def _implementation(spec: OpSpec, operator: Operator, backend: str) -> Callable:
    if backend == "reference":
        return operator.reference
    return getattr(_module(spec.name, backend), operator.name)


def _measured(spec: OpSpec, operator: Operator, data: Sequence[Tensor], args: Sequence) -> str:
    """Return the fastest backend that can serve this call, or the library's if nothing may be measured."""
    device = data[0].device
    able = [
        name
        for name in reversed(candidates(spec, device.type))
        if not reasons_against(spec, name, data, operator, args)
    ]
    assert operator.kind is not None
    ways = {name: partial(_implementation(spec, operator, name), *args) for name in able}
    kind = (operator.name, device, data[0].dtype, _tf32(data[0].dtype), operator.kind(*args))
    return _fastest.choose(kind, ways, device)


def _tf32(dtype: torch.dtype) -> tuple[bool, ...]:
    """Return whether the library may use TF32 in its products and convolutions, where that concerns dtype."""
    if dtype != torch.float32:
        return ()
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def packed(spec: OpSpec, weight: Tensor) -> Tensor:
    """Return the weight as the op's backend wants it (`pack` of its module), or as it is."""
    backend = choose(spec, [weight])
    pack = None if backend == "reference" else getattr(_module(spec.name, backend), "pack", None)
    return weight if pack is None else pack(weight)


@contextmanager
def use_backend(backend: str | None = None, /, **by_op: str) -> Iterator[None]:
    """In this context, serve operators with the named backend.

    `use_backend("cpu")` is for all operators, `use_backend(q_sample="reference")` for one. A call that the
    backend cannot serve raises NotImplementedError.

    Raises:
        ValueError: the backend or the operator is unknown.
    """
    override = ({"*": backend} if backend is not None else {}) | by_op
    for op, name in override.items():
        if op != "*" and op not in REGISTRY:
            raise ValueError(f"use_backend: operator must be one of {', '.join(REGISTRY)}, got {op}")
        if name not in BACKENDS:
            raise ValueError(f"use_backend: backend must be one of {', '.join(BACKENDS)}, got {name}")
    _overrides.append(override)
    try:
        yield
    finally:
        _overrides.remove(override)
