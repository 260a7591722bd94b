"""pointwise_conv beyond the generic tests: an independent composition, drawn shapes, bad arguments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dmtl.ops

from .maps import LAYOUTS, drawn_map, rounding
from .tools import DEVICE, DTYPES, missing, on_any_number_of_threads

BACKENDS = [name for name in ("reference", "cpu") if not missing(name, "pointwise_conv")]


def arguments(shape, K, dtype=torch.float32, layout="channels_last", seed=0):
    x = drawn_map(shape, dtype, layout, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(K, shape[1], 1, 1, generator=generator).to(DEVICE, dtype)
    return x.requires_grad_(), weight.requires_grad_()


def check(backend, x, weight):
    """Against a product of matrices in float64; layouts as promised."""
    torch.manual_seed(0)
    with dmtl.ops.use_backend(pointwise_conv=backend):
        out = dmtl.ops.pointwise_conv(x, weight)
        grad = torch.randn_like(out)
        found = (out, *torch.autograd.grad(out, (x, weight), grad))
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    expected = (wide[0].movedim(1, -1) @ wide[1].flatten(1).T).movedim(-1, 1)
    expected = (expected, *torch.autograd.grad(expected, wide, grad.double()))
    assert out.is_contiguous(memory_format=torch.channels_last)
    for got, wanted, like in zip(found, expected, (x, x, weight), strict=True):
        assert got.dtype == like.dtype and got.shape == wanted.shape
        scale = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
        rounded = rounding(x.dtype, backend)
        torch.testing.assert_close(got.double(), wanted, rtol=rounded, atol=4 * rounded * scale)


@st.composite
def cases(draw):
    """(x, weight): no images, single pixels, any number of channels."""
    shape = tuple(draw(st.integers(*bounds)) for bounds in ((0, 3), (1, 70), (1, 9), (1, 9)))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    return arguments(shape, draw(st.integers(1, 70)), dtype, layout, draw(st.integers(0, 99)))


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
@settings(max_examples=100)
def test_drawn_shapes(backend, case):
    assume(backend == "reference" or case[0].dtype == torch.float32)
    check(backend, *case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "K"), [((4, 16, 32, 40), 96), ((2, 672, 8, 10), 112), ((1, 300, 3, 3), 7)])
def test_layers_of_an_encoder(backend, shape, K):
    """More pixels than a partial sum of the weight gradient, more channels than one of gemm's."""
    check(backend, *arguments(shape, K))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gradient_at_a_time(backend):
    x, weight = arguments((2, 20, 6, 6), 9)
    with dmtl.ops.use_backend(pointwise_conv=backend):
        both = torch.autograd.grad(dmtl.ops.pointwise_conv(x, weight).square().sum(), (x, weight))
        (d_x,) = torch.autograd.grad(dmtl.ops.pointwise_conv(x, weight.detach()).square().sum(), x)
        (d_weight,) = torch.autograd.grad(dmtl.ops.pointwise_conv(x.detach(), weight).square().sum(), weight)
    assert torch.equal(d_x, both[0]) and torch.equal(d_weight, both[1])


@pytest.mark.skipif("cpu" not in BACKENDS, reason=missing("cpu", "pointwise_conv"))
def test_any_number_of_threads_gives_the_same_bits():
    x, weight = arguments((3, 40, 40, 24), 50)

    def call():
        with dmtl.ops.use_backend(pointwise_conv="cpu"):
            out = dmtl.ops.pointwise_conv(x, weight)
            return out, *torch.autograd.grad(out.square().sum(), (x, weight))

    on_any_number_of_threads(call)


GOOD = dict(x=torch.zeros(2, 8, 4, 6), weight=torch.zeros(5, 8, 1, 1))
BAD = [
    (dict(x=torch.zeros(2, 8, 4)), ValueError, r"x must be of shape \[B, C, h, w\] .*, got \[2, 8, 4\]"),
    (dict(x=torch.zeros(2, 8, 4, 6).int()), TypeError, "x must be float32, .*, got int32"),
    (dict(weight=torch.zeros(5, 8, 1, 1).half()), TypeError, "weight must be of x's dtype float32, got"),
    (
        dict(weight=torch.zeros(5, 8, 3, 3)),
        ValueError,
        r"weight must be of shape \[K, 8, 1, 1\] .*, got \[5, 8, 3, 3\]",
    ),
    (dict(weight=torch.zeros(5, 6, 1, 1)), ValueError, r"weight must be .*, got \[5, 6, 1, 1\]"),
    (dict(weight=torch.zeros(0, 8, 1, 1)), ValueError, r"weight must be .*, got \[0, 8, 1, 1\]"),
    (dict(weight=torch.zeros(5, 8, 1, 1, device="meta")), ValueError, "weight must be on cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^pointwise_conv: {message}"):
        dmtl.ops.pointwise_conv(**(GOOD | change))
