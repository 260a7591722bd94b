"""Every registered op on every backend. A new op is covered by adding its module."""

from __future__ import annotations

import pytest
import torch

import dmtl.ops
from dmtl.ops.registry import REGISTRY

from .tools import (
    DEVICE,
    DTYPES,
    FOR_CPUS,
    Recorder,
    backend_params,
    errors,
    leaves_of,
    missing,
    outputs,
    run,
    serves,
    to_dtype,
)

SPECS = [pytest.param(spec, id=name) for name, spec in REGISTRY.items()]
SIZES = ("tiny", "odd")
LONG = ("map_loss", "posterior_step", "condition_tokens", "noisy_tokens")  # seconds to check each


def quick(name: str, backend: str, dtype: torch.dtype) -> bool:
    """Whether `make test` runs this: Triton's interpreter is slow, and slowest for map_loss."""
    return backend != "triton" or (dtype == torch.float32 and name != "map_loss")


@pytest.mark.parametrize(
    ("spec", "backend", "dtype"),
    [
        pytest.param(
            spec,
            *backend.values,
            dtype,
            id=f"{name}-{backend.values[0]}-{dtype}",
            marks=[*backend.marks, *([] if quick(name, backend.values[0], dtype) else [pytest.mark.slow])],
        )
        for name, spec in REGISTRY.items()
        for backend in backend_params()
        for dtype in DTYPES
    ],
)
def test_agrees_with_float64(spec, backend, dtype, poisoned):
    """At most twice the error of the reference in the same dtype, plus the op's floor; same strides; every
    element written; the same bits a second time."""
    if reason := serves(spec, backend, dtype):
        pytest.skip(reason)
    served = 0
    for size in SIZES:
        for index, sample in enumerate(spec.samples(size, dtype, DEVICE)):
            if serves(spec, backend, dtype, sample):
                continue
            served += 1
            truth = run(spec, sample, torch.float64, "reference")
            peer = run(spec, sample, dtype, "reference")
            actual = run(spec, sample, dtype, backend)
            # Triton's interpreter is slow and has no order that could change.
            again = actual if backend == "triton" and DEVICE == "cpu" else run(spec, sample, dtype, backend)
            allowed = errors(peer, truth)
            for name, error in errors(actual, truth).items():
                where = f"{size} sample {index}, {name}"
                assert error <= 2 * allowed[name] + spec.tolerance[dtype], (
                    f"{where}: error {error}, reference {allowed[name]}"
                )
                assert actual[name].dtype == peer[name].dtype, where
                assert actual[name].stride() == peer[name].stride(), where
                assert torch.equal(actual[name], again[name]), where
    assert served > 0


NO_KERNEL = "has no kernel for this operator"


@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
@pytest.mark.parametrize("spec", SPECS)
def test_a_kernel_serves_float32(spec, backend):
    """A backend that has the op at all computes it in float32, so that nothing above is skipped unseen."""
    assert serves(spec, backend, torch.float32) in ("", NO_KERNEL)


@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_every_op_has_a_kernel(backend):
    """C++ has every op, and Triton every op that a GPU is asked for (CUDA leaves some to Triton)."""
    expected = [] if backend == "cpu" else list(FOR_CPUS)
    missing_kernels = [
        name for name, spec in REGISTRY.items() if serves(spec, backend, torch.float32) == NO_KERNEL
    ]
    assert sorted(missing_kernels) == expected


@pytest.mark.parametrize("spec", SPECS)
def test_gradcheck(spec):
    """The closed-form backward against finite differences, in float64."""
    if spec.backward is None:
        pytest.skip("has no gradients")
    for size in SIZES:
        for sample in spec.samples(size, torch.float64, DEVICE):
            sample = to_dtype(sample, spec.differentiable, torch.float64)
            leaves = leaves_of(spec, sample)

            def call(*values, sample=sample, names=tuple(leaves)):
                given = dict(zip(names, values, strict=True))
                changed = {
                    name: [given[f"{name}[{i}]"] for i in range(len(sample[name]))]
                    if isinstance(sample[name], list)
                    else given[name]
                    for name in spec.differentiable
                    if sample.get(name) is not None
                }
                return tuple(outputs(spec.function(**(sample | changed))))

            assert torch.autograd.gradcheck(call, list(leaves.values()), fast_mode=size != "tiny")


@pytest.mark.parametrize("spec", SPECS)
def test_second_derivative_is_refused(spec):
    if spec.backward is None:
        pytest.skip("has no gradients")
    sample = to_dtype(spec.samples("odd", torch.float32, DEVICE)[0], spec.differentiable, torch.float32)
    leaves = list(leaves_of(spec, sample).values())
    loss = sum(out.square().sum() for out in outputs(spec.function(**sample)) if out.requires_grad)
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(gradient.sum() for gradient in first).backward()


def _operator_calls(spec, size: str) -> list:
    """Calls of the op's torch operators, forward and backward, one for each distinct set of argument kinds
    and dimensions."""
    with Recorder() as recorder:
        for sample in spec.samples(size, torch.float32, DEVICE):
            run(spec, sample, torch.float32, "reference")
    distinct = {}
    for func, args in recorder.calls:
        # The operators themselves carry no autograd formula: the public function wraps them.
        distinct[func.name(), _kind(args)] = (func, _detached(args))
    return list(distinct.values())


def _kind(arg):
    if isinstance(arg, torch.Tensor):
        return arg.dim(), arg.is_contiguous()
    return tuple(map(_kind, arg)) if isinstance(arg, (list, tuple)) else arg


def _detached(arg):
    if isinstance(arg, torch.Tensor):
        return arg.detach()
    return type(arg)(map(_detached, arg)) if isinstance(arg, (list, tuple)) else arg


@pytest.mark.parametrize(
    ("backend", "size"),
    [  # what is checked hardly depends on the backend: one on the CPU is enough
        pytest.param(
            *backend.values, size, marks=(*backend.marks, *([pytest.mark.slow] if size != "tiny" else []))
        )
        for backend in backend_params("reference" if missing("cpu") else "cpu", "cuda")
        for size in SIZES
    ],
)
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name, marks=[pytest.mark.slow] if name in LONG else [])
        for name, spec in REGISTRY.items()
    ],
)
def test_opcheck(spec, backend, size):
    """Schema, fake, autograd registration and AOT dispatch of the forward and of the backward operator."""
    if reason := serves(spec, backend, torch.float32):
        pytest.skip(reason)
    seen = set()
    with dmtl.ops.use_backend(**{spec.name: backend}):
        for func, args in _operator_calls(spec, size):
            seen.add(func.name())
            torch.library.opcheck(func, args)
    assert seen == {f"dmtl::{op.name}" for op in (spec.forward, spec.backward) if op}


@pytest.mark.parametrize("spec", SPECS)
def test_compile_fullgraph(spec):
    """One graph, forward and backward, and the eager values."""
    sample = to_dtype(spec.samples("odd", torch.float32, DEVICE)[0], spec.differentiable, torch.float32)
    leaves = list(leaves_of(spec, sample).values())

    def double(**kwargs):
        return [out * 2 for out in outputs(spec.function(**kwargs))]

    def gradients(outs):
        return torch.autograd.grad(sum(out.sum() for out in outs), leaves) if leaves else ()

    torch.compiler.reset()
    out = torch.compile(double, fullgraph=True, backend="aot_eager")(**sample)
    expected = double(**sample)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out), gradients(expected))


@pytest.mark.parametrize("tracked", [False, True], ids=["inference", "with gradients"])
@pytest.mark.parametrize("spec", SPECS)
def test_export(spec, tracked):
    """The exported program holds the operator itself, names no backend, and gives the eager values."""
    for sample in spec.samples("odd", torch.float32, DEVICE)[:2]:
        if tracked:
            sample = to_dtype(sample, spec.differentiable, torch.float32)

        class Module(torch.nn.Module):
            def forward(self, **kwargs):
                return spec.function(**kwargs)

        program = torch.export.export(Module(), (), sample)
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert f"dmtl.{spec.forward.name}.default" in targets
        torch.testing.assert_close(program.module()(**sample), spec.function(**sample))


@pytest.mark.parametrize("spec", SPECS)
def test_explicit_choice_never_falls_back(spec):
    """An explicit backend that cannot serve raises, and the message lists every candidate with its
    reasons."""
    sample = spec.samples("odd", torch.float64, "cpu")[0]
    with dmtl.ops.use_backend(**{spec.name: "cuda"}), pytest.raises(NotImplementedError) as refusal:
        spec.function(**sample)
    message = str(refusal.value)
    assert message.startswith(f"{spec.name}: backend cuda (requested by dmtl.use_backend) cannot serve")
    assert "device cpu is not one of cuda" in message or "cuda: has no kernel for this operator" in message
    assert "reference: could serve it" in message
    assert all(f"\n  {backend}: " in message for backend in ("cuda", "triton", "cpu", "reference"))


@pytest.mark.parametrize("spec", SPECS)
def test_non_tensor_is_named(spec):
    """A wrong first argument is a TypeError in the wording of the house."""
    sample = spec.samples("odd", torch.float32, DEVICE)[0]
    first = next(iter(sample))
    with pytest.raises(TypeError, match=rf"{spec.name}: {first} must be a tensor, got list"):
        spec.function(**(sample | {first: [1.0]}))


def test_every_op_is_public_and_documented():
    for name, spec in REGISTRY.items():
        assert getattr(dmtl.ops, name) is spec.function
        assert spec.function.__doc__ and "Raises" in spec.function.__doc__


@pytest.mark.skipif(bool(missing("cpu")), reason=missing("cpu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_instruction_sets_agree(spec, dtype):
    """The C++ kernels give the same bits with every instruction set and thread count."""
    from dmtl.runtime import native

    core = native.core()
    best, threads = core.isa(), torch.get_num_threads()
    try:
        for sample in spec.samples("odd", dtype, "cpu"):
            if serves(spec, "cpu", dtype, sample):
                continue
            expected = run(spec, sample, dtype, "cpu")
            for isa in core.isas():
                for count in (1, 2):
                    core.use_isa(isa)
                    torch.set_num_threads(count)
                    for name, value in run(spec, sample, dtype, "cpu").items():
                        assert torch.equal(value, expected[name]), (isa, count, name)
                core.use_isa(best)
    finally:
        core.use_isa(best)
        torch.set_num_threads(threads)
