"""inverted_residual beyond the generic tests: the layers one by one, drawn shapes, bands, bad arguments."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F

import dmtl
from dmtl.ops.inverted_residual import pack_inverted_residual
from dmtl.runtime import native

from .tools import missing

BACKENDS = [name for name in ("reference", "cpu") if not missing(name, "inverted_residual")]
needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason=missing("cpu", "inverted_residual"))


def arguments(B: int, C: int, H: int, W: int, E: int, N: int, k: int) -> dict:
    """Arguments of a block; E 0: without expansion."""
    wide = E or C
    return dict(
        x=torch.randn(B, C, H, W).contiguous(memory_format=torch.channels_last),
        expand=(torch.randn(E, C) / C**0.5, torch.randn(E)) if E else None,
        depthwise=(torch.randn(wide, 1, k, k) / k, torch.randn(wide)),
        project=(torch.randn(N, wide) / wide**0.5, torch.randn(N)),
    )


def layer_by_layer(x, expand, depthwise, project, stride, padding, residual, high):
    """The definition, in float64, with symmetric padding that is then shifted."""
    y = x.double()
    if expand is not None:
        weight, bias = (t.double() for t in expand)
        y = torch.einsum("ec,bchw->behw", weight, y) + bias[:, None, None]
        y = y.clamp(0, high)
    weight, bias = (t.double() for t in depthwise)
    k = weight.shape[-1]
    y = F.pad(y, (padding, k, padding, k))
    windows = y.unfold(2, k, stride).unfold(3, k, stride)
    h, w = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    y = torch.einsum("bchwuv,cuv->bchw", windows[:, :, :h, :w], weight[:, 0]) + bias[:, None, None]
    weight, bias = (t.double() for t in project)
    y = torch.einsum("ne,behw->bnhw", weight, y.clamp(0, high)) + bias[:, None, None]
    return y + x.double() if residual else y


@pytest.mark.parametrize("backend", BACKENDS)
def test_drawn_shapes(backend):
    draw = random.Random(0)
    for number in range(40):
        torch.manual_seed(number)
        C, E = draw.choice([1, 3, 16, 24]), draw.choice([0, 6, 16, 33, 96])
        stride, k = draw.choice([1, 2]), draw.choice([3, 5])
        residual = stride == 1 and draw.random() < 0.5
        N = C if residual else draw.choice([1, 8, 40])
        call = arguments(draw.randint(1, 3), C, draw.randint(1, 20), draw.randint(1, 20), E, N, k)
        padding = draw.randint(0, k - 1)
        options = dict(
            stride=stride, padding=padding, residual=residual, high=draw.choice([1.0, 6.0, math.inf])
        )
        with dmtl.use_backend(inverted_residual=backend):
            out = dmtl.ops.inverted_residual(**call, **options)
        expected = layer_by_layer(**call, **options)
        assert out.shape == expected.shape and out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)


LARGE = [
    (2, 16, 70, 130, 96, 24, 3, 2, 0),
    (1, 24, 90, 100, 144, 24, 5, 1, 2),
    (5, 32, 65, 64, 0, 16, 3, 1, 1),
]


@needs_cpu
@pytest.mark.parametrize(("B", "C", "H", "W", "E", "N", "k", "stride", "padding"), LARGE)
def test_bands(B, C, H, W, E, N, k, stride, padding):
    """Maps that are computed in bands: the definition, and equal bits for any number of threads and any
    instruction set, with weights packed before and in the call."""
    torch.manual_seed(0)
    call = arguments(B, C, H, W, E, N, k)
    options = dict(stride=stride, padding=padding, residual=stride == 1 and N == C, high=6.0)
    packed = pack_inverted_residual(call["expand"], call["depthwise"], call["project"])
    threads, core, found = torch.get_num_threads(), native.core(), []
    isa = core.isa()
    try:
        for number, name, given in [(1, isa, None), (2, isa, packed), *((3, n, packed) for n in core.isas())]:
            torch.set_num_threads(number)
            core.use_isa(name)
            found.append(dmtl.ops.inverted_residual(**call, **options, packed=given))
    finally:
        torch.set_num_threads(threads)
        core.use_isa(isa)
    torch.testing.assert_close(found[0].double(), layer_by_layer(**call, **options), rtol=1e-5, atol=2e-5)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays(backend):
    call = arguments(1, 16, 6, 6, 32, 16, 3)
    call["x"][0, 3, 2, 2] = torch.nan
    with dmtl.use_backend(inverted_residual=backend):
        out = dmtl.ops.inverted_residual(**call, high=6.0)
    assert out[..., 1:4, 1:4].isnan().all() and not out[..., 4:, :].isnan().any()


GOOD = arguments(2, 8, 4, 6, 16, 8, 3)
BAD = [
    (dict(x=torch.zeros(2, 8, 4)), ValueError, r"x must be of shape \[B, C, H, W\], got \[2, 8, 4\]"),
    (dict(x=torch.zeros(2, 8, 4, 6).int()), TypeError, "x must be float32, .*, got int32"),
    (
        dict(expand=(torch.zeros(16, 7), torch.zeros(16))),
        ValueError,
        r"expand's weight must be of shape \[16, 8\], got \[16, 7\]",
    ),
    (
        dict(expand=(torch.zeros(16, 8), torch.zeros(16).half())),
        TypeError,
        "expand's bias must be of x's dtype float32, got float16",
    ),
    (dict(expand=None), ValueError, "depthwise must be of 8 channels without an expansion, got 16"),
    (
        dict(depthwise=(torch.zeros(16, 1, 7, 7), torch.zeros(16))),
        ValueError,
        "depthwise must be a weight of side 3 or 5, got 7",
    ),
    (
        dict(project=(torch.zeros(8, 4), torch.zeros(8))),
        ValueError,
        r"project's weight must be of shape \[8, 16\], got \[8, 4\]",
    ),
    (dict(stride=3), ValueError, "stride must be 1 or 2, got 3"),
    (dict(padding=3), ValueError, "padding must be from 0 to 2, got 3"),
    (dict(residual=True, stride=2), ValueError, "residual must be False at stride 2 from 8 to 8 channels"),
    (dict(high=0.0), ValueError, "high must be positive, got 0.0"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^inverted_residual: {message}"):
        dmtl.ops.inverted_residual(**(GOOD | change))
