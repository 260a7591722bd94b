"""conv3x3 beyond the generic tests: an independent composition, drawn shapes and layouts, the 1x1 convolution
folded in, packed weights, bad arguments."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dmtl.ops
from dmtl.ops.conv3x3 import SPEC

from .tools import DEVICE, errors, missing, run, serves

BACKENDS = [name for name in ("reference", "cpu", "triton") if not missing(name, "conv3x3")]
needs_triton = pytest.mark.skipif("triton" not in BACKENDS, reason=missing("triton", "conv3x3"))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def composed(x, weights, biases, counts, relu=False, tap_biases=None) -> Tensor:
    """Row by row, tap by tap, on a padded image."""
    tasks = [task for task, count in enumerate(counts) for _ in range(count)]
    outs = [x.new_zeros(0, weights[0].shape[0], *x.shape[2:])]
    for row, task in zip(x, tasks, strict=True):
        h, w = row.shape[1:]
        padded, ones = F.pad(row, (1, 1, 1, 1)), F.pad(row.new_ones(h, w), (1, 1, 1, 1))
        y = row.new_zeros(weights[task].shape[0], h, w)
        for a in range(3):
            for b in range(3):
                y = y + torch.tensordot(weights[task][:, :, a, b], padded[:, a : a + h, b : b + w], 1)
                if tap_biases is not None:
                    y = y + tap_biases[task][:, a, b, None, None] * ones[a : a + h, b : b + w]
        y = y if biases is None else y + biases[task][:, None, None]
        outs.append((y.clamp(min=0) if relu else y).unsqueeze(0))
    return torch.cat(outs)


def make_case(
    counts, C, K, h, w, *, relu, biases, taps, dtype=torch.float32, layout="channels_last", seed=0,
    device=DEVICE,
) -> dict:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    R = sum(counts)
    x = {
        "channels_last": lambda: draw(R, C, h, w).contiguous(memory_format=torch.channels_last),
        "dense": lambda: draw(R, C, h, w),
        "sliced": lambda: draw(2 * R, C, h, 2 * w)[::2, :, :, ::2],
        "permuted": lambda: draw(w, h, C, R).permute(3, 2, 1, 0),
    }[layout]()
    return dict(
        x=x,
        weights=[draw(K, C, 3, 3) for _ in counts],
        biases=[draw(K) for _ in counts] if biases else None,
        counts=list(counts),
        relu=relu,
        tap_biases=[draw(K, 3, 3) for _ in counts] if taps else None,
    )


def leaves(case: dict) -> list[Tensor]:
    return [case["x"], *case["weights"], *(case["biases"] or []), *(case["tap_biases"] or [])]


def tracked(case: dict, dtype: torch.dtype) -> dict:
    """The case in another dtype, with fresh leaves that keep their strides."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype).requires_grad_() if x.dtype != dtype else x.detach().requires_grad_()

    return {
        name: [leaf(x) for x in value] if name in ("weights", "biases", "tap_biases") and value else value
        for name, value in case.items()
    } | {"x": leaf(case["x"])}


def compare(case: dict, backend: str) -> None:
    """Result and gradients of the backend against the composition in
    float64, each relative to its largest value."""
    dtype = case["x"].dtype
    mine, truth = tracked(case, dtype), tracked(case, torch.float64)
    with dmtl.ops.use_backend(conv3x3=backend):
        out = dmtl.ops.conv3x3(**mine)
        grad = torch.linspace(-1, 1, out.numel() + 1)[1:].view(out.shape).to(DEVICE, dtype)
        actual = [out, *torch.autograd.grad(out, leaves(mine), grad)]
    linear = composed(**(truth | dict(relu=False)))
    if case[
        "relu"
    ]:  # a rounding may decide the sign: the gradient goes where the backend's result is positive
        expected, grad = linear.clamp(min=0), grad * (out > 0)
    else:
        expected = linear
    tied = linear + 0 * sum(z.sum() for z in leaves(truth))  # absent tasks have a gradient, too
    gradients = torch.autograd.grad(tied, leaves(truth), grad.double())
    assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == dtype
    for got, want in zip(actual, [expected.detach(), *gradients], strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        if got.numel():
            error = (got.detach().double() - want).abs().max() / max(1.0, float(want.abs().max()))
            assert error <= TOLERANCE[dtype], float(error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relu", [False, True])
def test_against_composition(backend, relu):
    compare(make_case((2, 0, 1), 16, 24, 7, 5, relu=relu, biases=True, taps=True), backend)
    compare(make_case((1,), 8, 16, 4, 6, relu=relu, biases=False, taps=False), backend)


@needs_triton
def test_a_residual_that_triton_does_not_take():
    """Without a ReLU, or with tap biases, the operator has another backend, never a wrong result."""
    case = make_case((1, 2), 16, 8, 4, 5, relu=False, biases=True, taps=True)
    with dmtl.ops.use_backend(conv3x3="triton"), pytest.raises(NotImplementedError, match="a residual needs"):
        dmtl.ops.conv3x3(**case, residual=torch.zeros(3, 8, 4, 5, device=DEVICE))


@st.composite
def cases(draw, dtypes, multiple: int, most: int, rows: int):
    """A case of a drawn shape; channels are multiples of `multiple`."""
    channels = st.integers(1, most).map(lambda c: c * multiple)
    counts = draw(st.lists(st.integers(0, rows), min_size=1, max_size=4))
    return make_case(
        counts,
        draw(channels),
        draw(channels),
        draw(st.integers(1, 11)),
        draw(st.integers(1, 11)),
        relu=draw(st.booleans()),
        biases=draw(st.booleans()),
        taps=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(["channels_last", "dense", "sliced", "permuted"])),
        seed=draw(st.integers(0, 99)),
    )


@given(case=cases(list(TOLERANCE), 1, 13, 3))
@settings(max_examples=60)
def test_drawn_shapes_reference(case):
    compare(case, "reference")


@pytest.mark.skipif("cpu" not in BACKENDS, reason=missing("cpu", "conv3x3"))
@given(case=cases([torch.float32], 8, 5, 3))
@settings(max_examples=200)
def test_drawn_shapes_cpu(case):
    compare(case, "cpu")


def compare_tiled(case: dict, m: int, n: int, k: int, w: int) -> None:
    """In Triton with small tiles, so that small images are many of them."""
    from dmtl.kernels.triton import conv3x3 as module

    config = dict(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, BLOCK_W=w, num_warps=4, num_stages=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CONFIGS", {dtype: [config] for dtype in module.CONFIGS})
        patch.setattr(module, "_MEASURE", False)
        compare(case, "triton")


tile_sizes = st.tuples(*[st.sampled_from([16, 32])] * 3, st.sampled_from([0, 4, 16]))


@needs_triton
@given(case=cases([torch.float32, torch.float16], 8, 4, 2), tile=tile_sizes)
@settings(max_examples=40)
@pytest.mark.slow
def test_drawn_shapes_triton(case, tile):
    compare_tiled(case, *tile)


@needs_triton
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (3, 0, 2), (6,)])
def test_triton_bias_gradients_are_few_launches(counts):
    """One pass over the maps, then a sum and a rounding for each task."""
    from dmtl.kernels.triton import conv3x3 as module

    class Count(TorchDispatchMode):
        launches = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.launches += not func.is_view and "empty" not in func.name()
            return func(*args, **(kwargs or {}))

    g = torch.randn(sum(counts), 16, 5, 7, device=DEVICE).half()
    needs = False, False, True, False, False
    weights = [g.new_zeros(16, 16, 3, 3) for _ in counts]
    with Count() as count:
        *_, found, taps, _ = module.conv3x3_backward(g, g, weights, None, list(counts), False, *needs)
    assert count.launches <= 2 * len(counts) + 1 and taps == []
    for bias, rows in zip(found, g.split(counts), strict=True):
        torch.testing.assert_close(bias, rows.double().sum((0, 2, 3)).half(), rtol=2e-3, atol=1e-3)


@needs_triton
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float16], ids=str
)
def test_triton_boxes(monkeypatch, dtype):
    """Boxes of pixels: absent tasks, tap biases, other layouts, a residual; maps that end inside a box."""
    from dmtl.kernels.triton import conv3x3 as module

    config = dict(BLOCK_M=64, BLOCK_N=32, BLOCK_K=16, BLOCK_W=8, num_warps=4, num_stages=2)
    monkeypatch.setattr(module, "CONFIGS", {dtype: [config]})
    monkeypatch.setattr(module, "_MEASURE", False)
    for sample in SPEC.samples("odd", dtype, DEVICE):
        if not serves(SPEC, "triton", dtype, sample):
            found = run(SPEC, sample, dtype, "triton")
            truth = run(SPEC, sample, torch.float64, "reference")
            assert max(errors(found, truth).values()) <= TOLERANCE[dtype]


@needs_triton
@pytest.mark.parametrize("taps", [False, True])
def test_cudnn_then_one_launch(taps):
    """cuDNN writes into slices of the result; the kernel adds the rest in place."""
    from dmtl.kernels.triton import conv3x3 as module

    class OnCPU(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.cudnn_convolution.out:
                return kwargs["out"].copy_(F.conv2d(*args[:2], padding=args[2]))
            return func(*args, **(kwargs or {}))

    case = make_case((2, 0, 1), 16, 24, 7, 5, relu=True, biases=True, taps=taps, dtype=torch.float16)
    residual = None if taps else torch.ones(3, 24, 7, 5, device=DEVICE).half()
    with dmtl.ops.use_backend(conv3x3="reference"):
        expected = dmtl.ops.conv3x3(**case, residual=residual)
    out = torch.empty_like(expected)
    lists = case["weights"], case["biases"], case["tap_biases"] or []
    with OnCPU() if DEVICE == "cpu" else nullcontext():
        module._library(out, case["x"], residual, *lists, case["counts"], True, False)
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-2)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("w", [0, 4])
def test_triton_tiles(w):
    """Tasks whose pixels end inside a tile, channels that end inside
    a block, more tasks than a launch takes."""
    compare_tiled(make_case((1, 0, 2), 24, 40, 3, 7, relu=True, biases=True, taps=True), 16, 16, 16, w)
    compare_tiled(
        make_case([1, 0, 1] * 6 + [0, 2], 8, 24, 2, 3, relu=False, biases=True, taps=False), 16, 32, 16, w
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 4), (5, 1), (2, 2), (6, 9)])
def test_folded_1x1(backend, h, w):
    """A 1x1 and a 3x3 convolution as one, borders included; gradients reach the four parameters."""
    torch.manual_seed(h + w)
    x, weight1, bias1, weight3, bias3 = (
        torch.randn(shape, dtype=torch.float64).to(DEVICE)
        for shape in ((2, 8, h, w), (16, 8, 1, 1), (16,), (8, 16, 3, 3), (8,))
    )
    parameters = [z.requires_grad_() for z in (weight3, bias3, weight1, bias1)]
    expected = F.conv2d(F.conv2d(x, weight1, bias1), weight3, bias3, padding=1)
    singles = [z.detach().float().requires_grad_() for z in parameters]
    weight, bias, tap_bias = dmtl.ops.fold_1x1(*singles)
    with dmtl.ops.use_backend(conv3x3=backend):
        out = dmtl.ops.conv3x3(x.float(), [weight], [bias], [2], tap_biases=[tap_bias])
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    for got, want in zip(
        torch.autograd.grad(out.sum(), singles), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3)


def test_folded_1x1_without_biases():
    weight, bias, tap_bias = dmtl.ops.fold_1x1(torch.randn(4, 3, 3, 3), None, torch.randn(3, 5), None)
    assert weight.shape == (4, 5, 3, 3) and bias is None and tap_bias is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_weights(backend):
    """Weights packed once give the same bits; weights packed for another backend do no harm."""
    case = make_case((1, 2), 16, 8, 9, 6, relu=True, biases=True, taps=True)
    with dmtl.ops.use_backend(conv3x3=backend):
        packed = [dmtl.ops.pack_conv3x3(weight) for weight in case["weights"]]
        expected = dmtl.ops.conv3x3(**case)
        assert torch.equal(dmtl.ops.conv3x3(**case, packed=packed), expected)
        foreign = [torch.full((7, 5), float("nan"), device=DEVICE) for _ in packed]
        assert torch.equal(dmtl.ops.conv3x3(**case, packed=foreign), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays(backend):
    case = make_case((1,), 8, 8, 5, 6, relu=True, biases=True, taps=False)
    case["x"][0, 3, 2, 2] = float("nan")
    with dmtl.ops.use_backend(conv3x3=backend):
        out = dmtl.ops.conv3x3(**case)
    assert out[0, :, 1:4, 1:4].isnan().all()


GOOD = make_case((1, 1), 8, 4, 3, 3, relu=False, biases=True, taps=True, device="cpu")
X, WEIGHTS, BIASES = GOOD["x"], GOOD["weights"], GOOD["biases"]
BAD = [
    (dict(x=X.long()), TypeError, "x must be float32, bfloat16, float16 or float64, got int64"),
    (dict(x=X[0]), ValueError, r"x must be of shape \[R, C, h, w\] with C, h, w > 0, got \[8, 3, 3\]"),
    (dict(x=X[..., :0]), ValueError, r"x must be of shape .*, got \[2, 8, 3, 0\]"),
    (dict(weights=WEIGHTS[0]), TypeError, "weights must be a list, got Tensor"),
    (dict(weights=[]), ValueError, "weights must be of at least one task, got an empty list"),
    (dict(weights=[WEIGHTS[0], None]), TypeError, r"weights\[1\] must be a tensor, got NoneType"),
    (
        dict(weights=[WEIGHTS[0], WEIGHTS[1][:, :4]]),
        ValueError,
        r"weights\[1\] must be of shape \[4, 8, 3, 3\], got",
    ),
    (
        dict(weights=[WEIGHTS[0][..., 0]] * 2),
        ValueError,
        r"weights\[0\] must be of shape \[K, 8, 3, 3\], got \[4, 8",
    ),
    (
        dict(weights=[w.double() for w in WEIGHTS]),
        TypeError,
        r"weights\[0\] must be of x's dtype float32, got float64",
    ),
    (dict(biases=BIASES[:1]), ValueError, "biases must be of 2 tasks, got 1"),
    (dict(biases=[BIASES[0], BIASES[1][:3]]), ValueError, r"biases\[1\] must be of shape \[4\], got \[3\]"),
    (dict(biases=[BIASES[0].to("meta")] * 2), ValueError, r"biases\[0\] must be on cpu, got meta"),
    (
        dict(tap_biases=[BIASES[0]] * 2),
        ValueError,
        r"tap_biases\[0\] must be of shape \[4, 3, 3\], got \[4\]",
    ),
    (dict(residual=X), ValueError, r"residual must be of shape \[2, 4, 3, 3\], got \[2, 8, 3, 3\]"),
    (dict(residual=X[:, :4].double()), TypeError, "residual must be of x's dtype float32, got float64"),
    (dict(packed=WEIGHTS[:1]), ValueError, "packed must be of 2 tasks, got 1"),
    (dict(counts=torch.tensor([1, 1])), TypeError, "counts must be a list, got Tensor"),
    (dict(counts=[1.0, 1]), TypeError, "counts must be a list of ints, got float"),
    (dict(counts=[2, 1]), ValueError, r"counts must be 2 numbers of rows with sum 2, got \[2, 1\]"),
    (dict(counts=[3, -1]), ValueError, r"counts must be 2 numbers of rows with sum 2, got \[3, -1\]"),
    (dict(counts=[2]), ValueError, r"counts must be 2 numbers of rows with sum 2, got \[2\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^conv3x3: {message}"):
        dmtl.ops.conv3x3(**(GOOD | change))
