"""token_mlp beyond the generic tests: an independent composition, drawn shapes, GELU, bad arguments."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops
from dmtl.ops.token_mlp import SPEC

from .tools import DEVICE, backend_params, errors, missing, on_every_instruction_set, run, serves

FLOOR = {torch.float32: 1e-5, torch.float16: 3e-3}


def composed(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """The published MLP's own layers."""
    hidden = F.linear(F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias), fc1_weight, fc1_bias)
    return x + F.linear(F.gelu(hidden), fc2_weight, fc2_bias)


def composed_run(sample: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output and gradients of the composition, with the incoming gradient of `tools.run`."""
    sample = {name: value.detach().to(dtype).requires_grad_() for name, value in sample.items()}
    out = composed(**sample)
    incoming = torch.linspace(-1, 1, max(out.numel(), 1), device=out.device)[: out.numel()]
    incoming = incoming.reshape(out.shape)
    grads = torch.autograd.grad(out, list(sample.values()), incoming.half().to(dtype))
    return {"out": out.detach()} | {f"grad of {name}": grad for name, grad in zip(sample, grads, strict=True)}


def make(shape, width, hidden, *, layout="dense", seed=0, device=DEVICE) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes, scale=1.0):
        return (scale * torch.randn(sizes, generator=generator)).to(device)

    if layout == "sliced":
        x = draw(*(2 * size for size in shape), width + 3)[tuple(slice(None, None, 2) for _ in shape)]
        x = x[..., 1 : width + 1]
    elif layout == "permuted":
        x = draw(width, *shape).movedim(0, -1)
    else:
        x = draw(*shape, width)
    return dict(
        x=x, norm_weight=1 + draw(width, scale=0.2), norm_bias=draw(width, scale=0.2),
        fc1_weight=draw(hidden, width, scale=width**-0.5), fc1_bias=draw(hidden),
        fc2_weight=draw(width, hidden, scale=hidden**-0.5), fc2_bias=draw(width),
    )  # fmt: skip


def check(sample: dict, dtype: torch.dtype, backend: str) -> None:
    """Against the composition in float64: at most twice the error of the same composition in dtype, and a
    floor."""
    sample = {name: value.to(dtype) for name, value in sample.items()}
    truth = composed_run(sample, torch.float64)
    allowed = errors(composed_run(sample, dtype), truth)
    for name, error in errors(run(SPEC, sample, dtype, backend), truth).items():
        assert error <= 2 * allowed[name] + FLOOR[dtype], f"{name}: {error}, composition {allowed[name]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", backend_params("reference", "cpu", "triton"))
def test_against_composition(backend, dtype):
    for shape, width, hidden in (
        ((2, 37), 64, 256),
        ((), 8, 8),
        ((1,), 40, 16),
        ((3, 2, 5), 24, 96),
        ((0, 4), 8, 8),
    ):
        check(make(shape, width, hidden), dtype, backend)


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(0, 12), max_size=3))
    layout = draw(st.sampled_from(["dense", "sliced", "permuted"]))
    width, hidden = 8 * draw(st.integers(1, 9)), 8 * draw(st.integers(1, 20))
    sample = make(shape, width, hidden, layout=layout, seed=draw(st.integers(0, 99)))
    return sample, draw(st.sampled_from([torch.float32, torch.float32, torch.float16]))


@pytest.mark.parametrize("backend", backend_params("reference", "cpu"))
@given(case=cases())
@settings(max_examples=200)
def test_drawn_shapes(backend, case):
    check(*case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("triton"))
@given(case=cases())
@settings(max_examples=60)
def test_drawn_shapes_triton(backend, case):
    check(*case, backend)


@pytest.mark.parametrize("backend", backend_params("reference", "cpu"))
def test_many_tokens(backend):
    """More tokens than go through at once."""
    check(make((5, 1001), 16, 24), torch.float32, backend)


@pytest.mark.parametrize("backend", backend_params("reference", "cpu", "triton"))
def test_gelu(backend):
    """GELU and its derivative over the whole range, seen through layers that do nothing else."""
    grid = torch.linspace(-14, 14, 64 * (8 if backend == "triton" else 64)).reshape(-1, 64).to(DEVICE)
    zeros, eye, ones = (z.to(DEVICE) for z in (torch.zeros(1, 64), torch.eye(64), torch.ones(64)))
    with dmtl.ops.use_backend(token_mlp=backend):
        for row in grid:
            bias = row.clone().requires_grad_()
            out = dmtl.ops.token_mlp(zeros, ones, 0 * ones, 0 * eye, bias, eye, 0 * ones)
            (derivative,) = torch.autograd.grad(out.sum(), bias)
            true = row.double().requires_grad_()
            expected = 0.5 * true * torch.erfc(-true * 0.5**0.5)
            (slope,) = torch.autograd.grad(expected.sum(), true)
            torch.testing.assert_close(out[0].double(), expected.detach(), rtol=3e-7, atol=1e-6)
            torch.testing.assert_close(derivative.double(), slope, rtol=3e-7, atol=1e-6)


@pytest.mark.skipif(bool(missing("cpu", "token_mlp")), reason=missing("cpu", "token_mlp"))
@pytest.mark.parametrize(
    ("shape", "width", "hidden", "atol"), [((2, 30), 48, 96, 1e-2), ((17,), 264, 520, 2e-2)]
)
def test_bfloat16_kernel(shape, width, hidden, atol):
    """The C++ kernel's bfloat16, which automatic choice leaves to the library on some processors; one partial
    sum of a product, and several."""
    kernel = importlib.import_module("dmtl.kernels.cpu.token_mlp")
    args = [value.bfloat16() for value in make(shape, width, hidden).values()]
    truth = composed_run(
        dict(zip(SPEC.differentiable, (x.double() for x in args), strict=True)), torch.float64
    )
    out, h = on_every_instruction_set(lambda: kernel.token_mlp(*args, 1e-5, True))
    torch.testing.assert_close(out.double(), truth["out"], rtol=2**-8, atol=atol)
    incoming = torch.linspace(-1, 1, out.numel()).reshape(out.shape).half().bfloat16()
    found = kernel.token_mlp_backward(incoming, *args[:6], h, 1e-5)
    for name, grad in zip(SPEC.differentiable, found, strict=True):
        true = truth[f"grad of {name}"]
        assert float((grad.double() - true).norm() / true.norm()) < 2e-2, name


@pytest.mark.parametrize("backend", backend_params("reference", "cpu", "triton"))
def test_runs_are_bit_equal(backend):
    sample = make((3, 40), 48, 96)
    first, second = (run(SPEC, sample, torch.float32, backend) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_odd_widths_are_refused(backend):
    sample = make((3,), 20, 30)
    assert "multiple of 8" in serves(SPEC, backend, torch.float32, sample)
    check(sample, torch.float32, "reference")


BAD = [
    (dict(x=torch.zeros(())), ValueError, r"x must be of shape \[B, ...\]"),
    (dict(x=torch.zeros(2, 0)), ValueError, r"x must be of shape \[..., C\] with C >= 1"),
    (dict(x=torch.zeros(2, 8, dtype=torch.int64)), TypeError, "x must be float32"),
    (dict(norm_weight=torch.zeros(7)), ValueError, r"norm_weight must be of shape \[C\] = \[8\], got \[7\]"),
    (dict(norm_bias=torch.zeros(8).half()), TypeError, "norm_bias must be of x's dtype float32, got float16"),
    (dict(fc1_weight=torch.zeros(())), ValueError, r"fc1_weight must be of shape \[H, C\]"),
    (dict(fc1_weight=torch.zeros(16, 9)), ValueError, r"fc1_weight must be of shape \[H, C\] = \[16, 8\]"),
    (dict(fc1_bias=torch.zeros(8)), ValueError, r"fc1_bias must be of shape \[H\] = \[16\], got \[8\]"),
    (dict(fc2_weight=torch.zeros(16, 8)), ValueError, r"fc2_weight must be of shape \[C, H\] = \[8, 16\]"),
    (dict(fc2_bias=torch.zeros(8, device="meta")), ValueError, "fc2_bias must be on cpu, got meta"),
    (dict(fc2_bias=[0.0]), TypeError, "fc2_bias must be a tensor, got list"),
    (dict(eps=-1.0), ValueError, "eps must be positive, got -1.0"),
    (dict(eps=0), TypeError, "eps must be a float, got int"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^token_mlp: {message}"):
        dmtl.ops.token_mlp(**(make((2, 3), 8, 16, device="cpu") | change))
