"""upsample_add beyond the generic tests: the published composition, drawn shapes, borders, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops

from .maps import LAYOUTS, drawn_map, rounding
from .tools import DEVICE, DTYPES, backend_params


def composed(tokens, skip, reduction):
    """The published network: a change of layout, an interpolation, an addition."""
    R, C, h, w = skip.shape
    grid = tokens.transpose(1, 2).reshape(R, C, h // reduction, w // reduction)
    if skip.numel() == 0:
        return skip + tokens.sum()  # which keeps the graph
    return F.interpolate(grid, scale_factor=reduction, mode="bilinear", align_corners=False) + skip


def arguments(shape, reduction, dtype=torch.float32, layout="channels_last", seed=0):
    R, C, h, w = shape
    skip = drawn_map(shape, dtype, layout, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randn(R, (h // reduction) * (w // reduction), C, generator=generator).to(DEVICE, dtype)
    return tokens.requires_grad_(), skip.requires_grad_(), reduction


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 16, 8, 12), (1, 8, 4, 4), (2, 24, 4, 16)])
@pytest.mark.parametrize("backend", backend_params())
def test_against_published_composition(backend, shape, reduction):
    """Values and gradients, with weights that tell every element apart."""
    tokens, skip, _ = arguments(shape, reduction)
    with dmtl.ops.use_backend(upsample_add=backend):
        actual = dmtl.ops.upsample_add(tokens, skip, reduction=reduction)
        weight = torch.randn_like(actual)
        grads = torch.autograd.grad(actual, (tokens, skip), weight)
    expected = composed(tokens, skip, reduction)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        grads, torch.autograd.grad(expected, (tokens, skip), weight), rtol=1e-4, atol=1e-5
    )


def check(backend, tokens, skip, reduction):
    """Against the composition in float64: one rounding of each output apart, layouts as promised."""
    torch.manual_seed(0)
    with dmtl.ops.use_backend(upsample_add=backend):
        out = dmtl.ops.upsample_add(tokens, skip, reduction=reduction)
        grad = torch.randn_like(out)
        d_tokens, d_skip = torch.autograd.grad(out, (tokens, skip), grad)
    wide = [leaf.detach().double().requires_grad_() for leaf in (tokens, skip)]
    expected = composed(*wide, reduction)
    wide_d_tokens, _ = torch.autograd.grad(expected, wide, grad.double())
    assert out.is_contiguous(memory_format=torch.channels_last) and d_tokens.is_contiguous()
    assert out.dtype == d_tokens.dtype == skip.dtype
    rounded = rounding(skip.dtype, backend)
    torch.testing.assert_close(out.double(), expected, rtol=rounded, atol=rounded)
    torch.testing.assert_close(d_tokens.double(), wide_d_tokens, rtol=rounded, atol=8 * rounded)
    assert torch.equal(d_skip, grad)


@st.composite
def cases(draw, largest_side: int, most_channels: int):
    """(tokens, skip, reduction): empty maps, one token, any number of channels that is a multiple of 8."""
    reduction = draw(st.sampled_from([1, 2, 4]))
    shape = (
        draw(st.integers(0, 4)),
        8 * draw(st.integers(1, most_channels // 8)),
        reduction * draw(st.integers(0, largest_side // reduction)),
        reduction * draw(st.integers(0, largest_side // reduction)),
    )
    layout, dtype = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(DTYPES))
    tokens, skip, _ = arguments(shape, reduction, dtype, layout, draw(st.integers(0, 99)))
    if draw(st.booleans()):
        tokens = tokens.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    return tokens, skip, reduction


@pytest.mark.parametrize("backend", backend_params("cpu", "cuda"))
@given(case=cases(largest_side=28, most_channels=72))
@settings(max_examples=200)
def test_drawn_shapes(backend, case):
    check(backend, *case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("triton"))
@given(case=cases(largest_side=12, most_channels=24))
@settings(max_examples=60)
def test_drawn_shapes_triton(backend, case):
    check(backend, *case)


@pytest.mark.parametrize("backend", backend_params("reference", "cpu"))
@pytest.mark.parametrize("channels", [1, 3, 13, 513, 1030])
def test_any_number_of_channels(backend, channels):
    check(backend, *arguments((2, channels, 4, 8), 4))


@pytest.mark.parametrize("reduction", [2, 4])
@pytest.mark.parametrize("backend", backend_params())
def test_every_token_has_the_weight_of_its_pixels(backend, reduction):
    """Interpolation keeps constants, so the shares of the pixels add up, at the borders too."""
    tokens, skip, _ = arguments((1, 8, 4 * reduction, 3 * reduction), reduction)
    with dmtl.ops.use_backend(upsample_add=backend):
        ones = dmtl.ops.upsample_add(torch.ones_like(tokens), torch.zeros_like(skip), reduction=reduction)
        out = dmtl.ops.upsample_add(tokens, skip, reduction=reduction)
        (d_tokens,) = torch.autograd.grad(out.sum(), tokens)
    assert torch.equal(ones, torch.ones_like(ones))
    assert torch.equal(d_tokens, torch.full_like(d_tokens, reduction**2))


GOOD = dict(tokens=torch.zeros(2, 2, 8), skip=torch.zeros(2, 8, 4, 8), reduction=4)
BAD = [
    (dict(skip=torch.zeros(2, 8, 4)), ValueError, r"skip must be of shape \[R, C, h, w\], got \[2, 8, 4\]"),
    (dict(tokens=torch.zeros(2, 2, 8).int()), TypeError, "tokens must be float32, .*, got int32"),
    (
        dict(skip=torch.zeros(2, 8, 6, 8)),
        ValueError,
        r"skip must be of a height and width that are multiples of the reduction 4, got \[2, 8, 6, 8\]",
    ),
    (dict(reduction=8), ValueError, "reduction must be 1, 2 or 4, got 8"),
    (dict(reduction=True), TypeError, "reduction must be an int, got bool"),
    (
        dict(tokens=torch.zeros(2, 3, 8)),
        ValueError,
        r"tokens must be of shape \[R, N, C\] = \[2, 2, 8\], got \[2, 3, 8\]",
    ),
    (
        dict(tokens=torch.zeros(2, 2, 8).half()),
        TypeError,
        "tokens must be of skip's dtype float32, got float16",
    ),
    (dict(tokens=torch.zeros(2, 2, 8, device="meta")), ValueError, "tokens must be on cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^upsample_add: {message}"):
        dmtl.ops.upsample_add(**(GOOD | change))
