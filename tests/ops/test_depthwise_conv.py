"""depthwise_conv beyond the generic tests: an independent composition, drawn shapes, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops

from .maps import LAYOUTS, drawn_map, rounding
from .tools import DEVICE, DTYPES, missing, on_any_number_of_threads

BACKENDS = [name for name in ("reference", "cpu") if not missing(name, "depthwise_conv")]


def composed(x, weight, stride, padding):
    """Patches of every channel times its filter: no convolution of the library."""
    (B, C, H, W), k = x.shape, weight.shape[-1]
    h, w = -(-H // stride), -(-W // stride)
    if x.numel() == 0:
        return x.new_empty(B, C, h, w) + 0 * (x.sum() + weight.sum())  # which keeps the graph
    right, bottom = ((n - 1) * stride + k - padding - size for n, size in ((w, W), (h, H)))
    patches = F.pad(x, (padding, right, padding, bottom)).unfold(2, k, stride).unfold(3, k, stride)
    return (patches[:, :, :h, :w] * weight[:, 0, None, None]).sum((-2, -1))


def arguments(shape, k, dtype=torch.float32, layout="channels_last", seed=0):
    x = drawn_map(shape, dtype, layout, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(shape[1], 1, k, k, generator=generator).to(DEVICE, dtype)
    return x.requires_grad_(), weight.requires_grad_()


def check(backend, x, weight, stride, padding):
    """Against the composition in float64: one rounding of each output apart; layouts as promised."""
    torch.manual_seed(0)
    with dmtl.ops.use_backend(depthwise_conv=backend):
        out = dmtl.ops.depthwise_conv(x, weight, stride=stride, padding=padding)
        grad = torch.randn_like(out)
        d_x, d_weight = torch.autograd.grad(out, (x, weight), grad)
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    expected = composed(*wide, stride, weight.shape[-1] // 2 if padding is None else padding)
    wide_d_x, wide_d_weight = torch.autograd.grad(expected, wide, grad.double())
    assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == d_x.dtype == x.dtype
    assert d_weight.shape == weight.shape and d_weight.dtype == weight.dtype
    rounded = rounding(x.dtype, backend)
    for got, wanted in ((out, expected), (d_x, wide_d_x), (d_weight, wide_d_weight)):
        scale = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(got.double(), wanted, rtol=rounded, atol=2 * rounded * scale)


@st.composite
def cases(draw):
    """(x, weight, stride, padding): empty and single-pixel maps, any number of channels, every padding."""
    k, stride = draw(st.sampled_from((3, 5))), draw(st.sampled_from((1, 2)))
    shape = tuple(draw(st.integers(*bounds)) for bounds in ((0, 3), (1, 70), (1, 17), (1, 17)))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    padding = draw(st.one_of(st.none(), st.integers(0, k - 1)))
    return *arguments(shape, k, dtype, layout, draw(st.integers(0, 99))), stride, padding


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
@settings(max_examples=150)
def test_drawn_shapes(backend, case):
    check(backend, *case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, None), (3, 2, 0), (5, 1, None), (5, 2, 1)])
def test_layers_of_an_encoder(backend, k, stride, padding):
    """Widths of the networks, sides that are multiples of 32 at some scale."""
    for channels, side in ((32, 16), (144, 8), (672, 2)):
        check(backend, *arguments((2, channels, side, side), k), stride, padding)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [3, 5])
def test_same_padding_of_tensorflow(backend, k):
    """(k - 2) // 2 on the left and top of an even map at stride 2; the library pads the rest by hand."""
    x, weight = arguments((2, 9, 8, 12), k)
    with dmtl.ops.use_backend(depthwise_conv=backend):
        out = dmtl.ops.depthwise_conv(x, weight, stride=2, padding=(k - 2) // 2)
    padded = F.pad(x, ((k - 2) // 2, (k - 1) // 2) * 2)
    torch.testing.assert_close(out, F.conv2d(padded, weight, stride=2, groups=9), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gradient_at_a_time(backend):
    x, weight = arguments((2, 20, 6, 6), 3)
    with dmtl.ops.use_backend(depthwise_conv=backend):
        both = torch.autograd.grad(dmtl.ops.depthwise_conv(x, weight).square().sum(), (x, weight))
        (d_x,) = torch.autograd.grad(dmtl.ops.depthwise_conv(x, weight.detach()).square().sum(), x)
        (d_weight,) = torch.autograd.grad(dmtl.ops.depthwise_conv(x.detach(), weight).square().sum(), weight)
    assert torch.equal(d_x, both[0]) and torch.equal(d_weight, both[1])


@pytest.mark.skipif("cpu" not in BACKENDS, reason=missing("cpu", "depthwise_conv"))
def test_any_number_of_threads_gives_the_same_bits():
    x, weight = arguments((3, 40, 20, 12), 5)

    def call():
        with dmtl.ops.use_backend(depthwise_conv="cpu"):
            out = dmtl.ops.depthwise_conv(x, weight, stride=2, padding=1)
            return out, *torch.autograd.grad(out.square().sum(), (x, weight))

    on_any_number_of_threads(call)


GOOD = dict(x=torch.zeros(2, 8, 4, 6), weight=torch.zeros(8, 1, 3, 3), stride=1, padding=None)
BAD = [
    (dict(x=torch.zeros(2, 8, 4)), ValueError, r"x must be of shape \[B, C, H, W\], got \[2, 8, 4\]"),
    (dict(x=torch.zeros(2, 8, 4, 6).int()), TypeError, "x must be float32, .*, got int32"),
    (dict(x=[1.0]), TypeError, "x must be .*, got list"),
    (
        dict(weight=torch.zeros(8, 1, 3, 3).half()),
        TypeError,
        "weight must be of x's dtype float32, got float16",
    ),
    (
        dict(weight=torch.zeros(8, 1, 7, 7)),
        ValueError,
        r"weight must be of shape \[8, 1, k, k\] with k 3 or 5, got \[8, 1, 7, 7\]",
    ),
    (dict(weight=torch.zeros(8, 1, 3, 5)), ValueError, r"weight must be .*, got \[8, 1, 3, 5\]"),
    (dict(weight=torch.zeros(8, 8, 3, 3)), ValueError, r"weight must be .*, got \[8, 8, 3, 3\]"),
    (dict(weight=torch.zeros(6, 1, 3, 3)), ValueError, r"weight must be .*, got \[6, 1, 3, 3\]"),
    (dict(stride=3), ValueError, "stride must be 1 or 2, got 3"),
    (dict(padding=3), ValueError, "padding must be from 0 to 2, got 3"),
    (dict(padding=-1), ValueError, "padding must be from 0 to 2, got -1"),
    (dict(weight=torch.zeros(8, 1, 3, 3, device="meta")), ValueError, "weight must be on cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^depthwise_conv: {message}"):
        dmtl.ops.depthwise_conv(**(GOOD | change))
