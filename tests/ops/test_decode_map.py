"""decode_map beyond the generic tests: the tasks' own decoding of upsampled logits, near-ties, drawn shapes,
NaN, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops
from dmtl import tasks
from dmtl.ops.decode_map import CHANNELS

from .maps import LAYOUTS, drawn_map
from .tools import DEVICE, DTYPES, backend_params

TASKS = {
    "argmax": tasks.SemSeg(),
    "softmax": tasks.Sal(),
    "sigmoid": tasks.Edge(),
    "value": tasks.Depth(),
    "exp": tasks.Depth(log=True),
    "unit": tasks.Normals(),
}


def upsampled(x, weight, bias, size, factor):
    """The logits at the image's size, in float64."""
    logits = x.double()
    if weight is not None:
        logits = F.conv2d(logits, weight.double()[..., None, None], None if bias is None else bias.double())
    frame = [factor * side for side in x.shape[2:]]
    return F.interpolate(logits, frame, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def rounding_bound(x, weight, bias, size, factor):
    """What float32 may lose on each of a pixel's logits, [n, H, W]: C roundings of the head's sum and its
    bias, at most ten of the interpolation, each 2^-24 of the sum of magnitudes."""
    magnitudes = [None if t is None else t.abs() for t in (x, weight, bias)]
    return (x.shape[1] + 11) * 2.0**-24 * upsampled(*magnitudes, size, factor).amax(1)


def check(backend, x, weight, bias, kind, size, factor):
    with dmtl.ops.use_backend(decode_map=backend):
        out = dmtl.ops.decode_map(x, weight, bias, kind=kind, size=size, factor=factor)
    u = upsampled(x, weight, bias, size, factor)
    lost = rounding_bound(x, weight, bias, size, factor)
    assert out.is_contiguous()
    if kind == "argmax":
        assert out.dtype == torch.int64 and out.shape == (x.shape[0], *size)
        assert out.min() >= 0 and out.max() < u.shape[1]
        gap = u.amax(1) - u.gather(1, out[:, None])[:, 0]
        assert (gap <= 2 * lost).all(), f"class ids differ where the logits are {float(gap.max())} apart"
        return
    expected = TASKS[kind].decode(u)
    if kind == "unit":
        expected = u / u.norm(dim=1, keepdim=True).clamp(min=1e-4)
        lost = (2 * lost / u.norm(dim=1).clamp(min=1e-4)).unsqueeze(1)
    elif kind == "exp":
        expected = u[:, 0].exp()
        lost = lost * expected
    elif kind == "value":
        expected = u[:, 0]
    allowed = 2 * lost + 1e-6 * expected.abs().clamp(min=1)
    assert out.dtype == torch.float32 and out.shape == expected.shape
    assert ((out.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("backend", backend_params())
def test_against_the_tasks_decoding(backend, kind):
    """The published end of the network: head, upsampling by 8, cropping, the task's `decode`."""
    task = TASKS[kind]
    images, width = (1, 20) if backend == "triton" else (2, 48)
    feature = torch.randn(images, width, 3, 5, device=DEVICE)
    head = torch.nn.Conv2d(width, task.channels, 1, device=DEVICE)
    size = (22, 37)
    with torch.no_grad():
        logits = F.interpolate(head(feature), (24, 40), mode="bilinear", align_corners=False)[..., :22, :37]
        expected = task.decode(logits)
        with dmtl.ops.use_backend(decode_map=backend):
            out = dmtl.ops.decode_map(feature, head.weight.flatten(1), head.bias, kind=kind, size=size)
            from_logits = dmtl.ops.decode_map(head(feature), kind=kind, size=size)
    assert out.dtype == expected.dtype and out.shape == expected.shape
    for got in (out, from_logits):
        if kind == "argmax":
            assert (got != expected).float().mean() <= 1e-3  # near-ties, see test_drawn_shapes
        else:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_task_and_kind_belong_together():
    for kind, task in TASKS.items():
        assert CHANNELS[kind] in (None, task.channels)


@st.composite
def cases(draw, dtypes, largest_side: int, most_channels: int, most_classes: int):
    """Arguments of a call: one pixel, any factor, sizes down to one pixel of the map, any layout, with and
    without head."""
    kind, factor = draw(st.sampled_from(list(CHANNELS))), draw(st.integers(1, 9))
    h, w = (draw(st.integers(1, largest_side)) for _ in "hw")
    size = draw(st.integers(1, factor * h)), draw(st.integers(1, factor * w))
    classes = CHANNELS[kind] or draw(st.integers(1, most_classes))
    with_head, seed, dtype = draw(st.booleans()), draw(st.integers(0, 99)), draw(st.sampled_from(dtypes))
    channels = draw(st.integers(1, most_channels)) if with_head else classes
    x = drawn_map((draw(st.integers(1, 3)), channels, h, w), dtype, draw(st.sampled_from(LAYOUTS)), seed)
    weight = bias = None
    if with_head:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn((classes, channels), generator=generator) * channels**-0.5
        bias = torch.randn(classes, generator=generator).to(DEVICE, dtype) if draw(st.booleans()) else None
        weight = weight.to(DEVICE, dtype)
    return x, weight, bias, kind, size, factor


@pytest.mark.parametrize("backend", backend_params("cpu", "cuda"))
@given(case=cases(DTYPES, largest_side=21, most_channels=50, most_classes=40))
@settings(max_examples=200)
def test_drawn_shapes(backend, case):
    check(backend, *case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("triton"))
@given(case=cases((torch.float32, torch.float16), largest_side=5, most_channels=20, most_classes=5))
@settings(max_examples=60)
def test_drawn_shapes_triton(backend, case):
    check(backend, *case)


@pytest.mark.parametrize("backend", backend_params(slow="triton"))
def test_many_classes(backend):
    check(backend, torch.randn(1, 300, 2, 3, device=DEVICE), None, None, "argmax", (6, 9), 3)


@pytest.mark.parametrize("backend", backend_params())
def test_first_of_equals_and_nan(backend):
    """As torch's argmax: the first of equal logits, and NaN before everything else."""
    logits = torch.zeros(1, 5, 1, 1, device=DEVICE)
    logits[0, 1:3] = 1.0
    call = dict(kind="argmax", size=(3, 3), factor=3)
    with dmtl.ops.use_backend(decode_map=backend):
        assert (dmtl.ops.decode_map(logits, **call) == 1).all()
        logits[0, 3:] = torch.nan
        assert (dmtl.ops.decode_map(logits, **call) == 3).all()
        assert dmtl.ops.decode_map(logits[:, 4:], kind="sigmoid", size=(3, 3), factor=3).isnan().all()
        assert dmtl.ops.decode_map(logits[:, 2:], kind="unit", size=(3, 3), factor=3).isnan().all()


@pytest.mark.parametrize("backend", backend_params())
def test_extreme_values(backend):
    """exp and sigmoid reach 0, 1 and infinity where float32 does; a vanishing vector stays short."""
    values = torch.tensor([-200.0, -90.0, -1.0, 0.0, 30.0, 88.0, 200.0], device=DEVICE).reshape(-1, 1, 1, 1)
    call = dict(size=(1, 1), factor=1)
    with dmtl.ops.use_backend(decode_map=backend):
        exp = dmtl.ops.decode_map(values, kind="exp", **call).flatten()
        sigmoid = dmtl.ops.decode_map(values, kind="sigmoid", **call).flatten()
        short = dmtl.ops.decode_map(torch.full((1, 3, 1, 1), 1e-6, device=DEVICE), kind="unit", **call)
    torch.testing.assert_close(exp, values.flatten().exp(), rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(sigmoid, values.flatten().sigmoid(), rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(short, torch.full_like(short, 1e-2))


@pytest.mark.parametrize("backend", backend_params())
def test_no_rows(backend):
    x, weight = torch.zeros(0, 8, 2, 2, device=DEVICE), torch.zeros(3, 8, device=DEVICE)
    with dmtl.ops.use_backend(decode_map=backend):
        assert dmtl.ops.decode_map(x, weight, kind="argmax", size=(16, 9)).shape == (0, 16, 9)
        assert dmtl.ops.decode_map(x, weight, kind="unit", size=(16, 9)).shape == (0, 3, 16, 9)


def test_has_no_gradient():
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    assert not dmtl.ops.decode_map(x, kind="value", size=(16, 16)).requires_grad


GOOD = dict(
    x=torch.zeros(2, 8, 3, 4), weight=torch.zeros(3, 8), bias=torch.zeros(3), kind="unit", size=(24, 32)
)
BAD = [
    (dict(x=[1.0]), TypeError, "x must be a tensor, got list"),
    (dict(x=torch.zeros(2, 8, 3, 4).int()), TypeError, "x must be float32, .*, got int32"),
    (dict(x=torch.zeros(2, 8, 3)), ValueError, r"x must be of shape \[n, C, h, w\] with C, h, w >= 1, got"),
    (dict(x=torch.zeros(2, 8, 0, 4)), ValueError, r"x must be of shape .*, got \[2, 8, 0, 4\]"),
    (dict(weight=torch.zeros(3, 7)), ValueError, r"weight must be of shape \[C_T, 8\], got \[3, 7\]"),
    (dict(weight=torch.zeros(3, 8).half()), TypeError, "weight must be of x's dtype float32, got float16"),
    (dict(weight=torch.zeros(3, 8, device="meta")), ValueError, "weight must be on cpu, got meta"),
    (dict(bias=torch.zeros(2)), ValueError, r"bias must be of shape \[3\], got \[2\]"),
    (dict(weight=None), ValueError, "bias must be None without a weight, got a tensor"),
    (dict(kind="median"), ValueError, "kind must be one of argmax, .*, got median"),
    (dict(kind="softmax"), ValueError, r"kind must be one that decodes 3 channels, got softmax \(2\)"),
    (dict(size=(25, 32)), ValueError, r"size must be between \(1, 1\) and \(24, 32\), got \(25, 32\)"),
    (dict(size=(0, 32)), ValueError, r"size must be between .*, got \(0, 32\)"),
    (dict(size=24), TypeError, r"size must be a pair \(H, W\), got 24"),
    (dict(factor=0), ValueError, "factor must be at least 1, got 0"),
    (dict(factor=8.0), TypeError, "factor must be an int, got float"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^decode_map: {message}"):
        dmtl.ops.decode_map(**(GOOD | change))
