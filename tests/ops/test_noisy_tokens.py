"""noisy_tokens beyond the generic tests: the published composition, drawn shapes, no copy without a bias, bad
arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops

from .maps import LAYOUTS, drawn_map, rounding
from .tools import DEVICE, DTYPES, backend_params

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def composed(x, bias, reduction):
    """The published network: an addition, an interpolation, a change of layout."""
    skip = x if bias is None else x + bias.reshape(-1, x.shape[1], 1, 1)
    tokens = skip
    if reduction > 1 and skip.numel() > 0:
        tokens = F.interpolate(skip, scale_factor=1 / reduction, mode="bilinear", align_corners=False)
    elif reduction > 1:
        tokens = skip[..., ::reduction, ::reduction]
    return skip, tokens.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("bias_dim", [0, 1, 2])
@pytest.mark.parametrize("backend", backend_params())
def test_against_published_composition(backend, bias_dim, reduction):
    """Values and gradients, with weights that tell every element apart."""
    x = torch.randn(3, 16, 8, 12, device=DEVICE, requires_grad=True)
    bias = [None, torch.randn(16, device=DEVICE), torch.randn(3, 16, device=DEVICE)][bias_dim]
    leaves = [x] if bias is None else [x, bias.requires_grad_()]
    with dmtl.ops.use_backend(noisy_tokens=backend):
        actual = dmtl.ops.noisy_tokens(x, bias, reduction=reduction)
        weights = [torch.randn_like(out) for out in actual]
        grads = torch.autograd.grad(actual, leaves, weights)
    expected = composed(x, bias, reduction)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, leaves, weights), rtol=1e-4, atol=1e-4)


def check(backend, x, bias, reduction):
    """Against the composition in float64: one rounding of each output apart, layouts as promised."""
    torch.manual_seed(0)
    x = x.detach().requires_grad_()
    leaves = [x] if bias is None else [x, bias.requires_grad_()]
    with dmtl.ops.use_backend(noisy_tokens=backend):
        skip, tokens = dmtl.ops.noisy_tokens(x, bias, reduction=reduction)
        grad_skip, grad_tokens = torch.randn_like(skip), torch.randn_like(tokens)
        grads = torch.autograd.grad((skip, tokens), leaves, (grad_skip, grad_tokens))
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = composed(wide[0], wide[1] if bias is not None else None, reduction)
    wide_grads = torch.autograd.grad(expected, wide, (grad_skip.double(), grad_tokens.double()))
    assert skip.is_contiguous(memory_format=torch.channels_last) and tokens.is_contiguous()
    assert {out.dtype for out in (skip, tokens, *grads)} == {x.dtype}
    rounded = rounding(x.dtype, backend)
    torch.testing.assert_close(skip.double(), expected[0], rtol=rounded, atol=rounded)
    torch.testing.assert_close(tokens.double(), expected[1], rtol=rounded, atol=rounded)
    for grad, wide_grad in zip(grads, wide_grads, strict=True):
        torch.testing.assert_close(grad.double(), wide_grad, rtol=TOLERANCE[x.dtype], atol=1e-4)


@st.composite
def cases(draw, largest_side: int, most_channels: int):
    """(x, bias, reduction): empty maps, one pixel, any number of channels that is a multiple of 8."""
    reduction, seed = draw(st.sampled_from([1, 2, 4])), draw(st.integers(0, 99))
    x = drawn_map(
        (
            draw(st.integers(0, 4)),
            8 * draw(st.integers(1, most_channels // 8)),
            reduction * draw(st.integers(0, largest_side // reduction)),
            reduction * draw(st.integers(0, largest_side // reduction)),
        ),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS)),
        seed,
    )
    bias_shape = draw(st.sampled_from([None, x.shape[1:2], x.shape[:2]]))
    if bias_shape is None:
        return x, None, reduction
    bias = torch.randn(bias_shape, generator=torch.Generator().manual_seed(seed))
    return x, bias.to(DEVICE, x.dtype), reduction


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
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_any_number_of_channels(backend, channels):
    check(backend, torch.randn(2, channels, 4, 8), torch.randn(channels), 4)


@pytest.mark.parametrize("tracked", [False, True])
def test_without_a_bias_the_map_is_not_copied(tracked):
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_(tracked)
    skip, _ = dmtl.ops.noisy_tokens(x, reduction=4)
    assert skip.data_ptr() == x.data_ptr() and skip.stride() == x.stride()


def test_gradient_of_one_output_alone():
    x, bias = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(8, requires_grad=True)
    skip, tokens = dmtl.ops.noisy_tokens(x, bias, reduction=4)
    (d_x,) = torch.autograd.grad(skip.sum(), x, retain_graph=True)
    assert torch.equal(d_x, torch.ones_like(d_x))
    d_x, d_bias = torch.autograd.grad(tokens.sum(), (x, bias))
    expected = torch.zeros_like(d_x)
    expected[..., 1:3, 1:3] = 0.25
    assert torch.equal(d_x, expected)
    assert torch.equal(d_bias, torch.full_like(d_bias, 2.0))


GOOD = dict(x=torch.zeros(2, 8, 4, 8), bias=torch.zeros(8), reduction=4)
BAD = [
    (dict(x=torch.zeros(2, 8, 4)), ValueError, r"x must be of shape \[R, C, h, w\], got \[2, 8, 4\]"),
    (dict(x=torch.zeros(2, 8, 4, 4).int()), TypeError, "x must be float32, .*, got int32"),
    (
        dict(x=torch.zeros(2, 8, 6, 8)),
        ValueError,
        r"x must be of a height and width that are multiples of the reduction 4, got \[2, 8, 6, 8\]",
    ),
    (dict(reduction=3), ValueError, "reduction must be 1, 2 or 4, got 3"),
    (dict(reduction=4.0), TypeError, "reduction must be an int, got float"),
    (dict(bias=torch.zeros(7)), ValueError, r"bias must be of shape \[8\] or \[2, 8\], got \[7\]"),
    (dict(bias=torch.zeros(1, 8)), ValueError, r"bias must be of shape \[8\] or \[2, 8\], got \[1, 8\]"),
    (dict(bias=torch.zeros(8).half()), TypeError, "bias must be of x's dtype float32, got float16"),
    (dict(bias=[0.0] * 8), TypeError, "bias must be a tensor, got list"),
    (dict(bias=torch.zeros(8, device="meta")), ValueError, "bias must be on cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^noisy_tokens: {message}"):
        dmtl.ops.noisy_tokens(**(GOOD | change))


def test_number_of_rows_may_be_symbolic():
    """Exported once for any number of rows, with a bias, without one, and back to a map."""

    class There(torch.nn.Module):
        def forward(self, x, bias):
            skip, tokens = dmtl.ops.noisy_tokens(x, bias, reduction=4)
            return dmtl.ops.upsample_add(dmtl.ops.noisy_tokens(skip, reduction=4)[1] + tokens, x, reduction=4)

    rows, bias = {"x": {0: torch.export.Dim("rows", max=64)}, "bias": None}, torch.randn(8)
    program = torch.export.export(There(), (torch.randn(3, 8, 4, 8), bias), dynamic_shapes=rows)
    x = torch.randn(5, 8, 4, 8)
    torch.testing.assert_close(program.module()(x, bias), There()(x, bias))
