"""condition_tokens beyond the generic tests: the fold, the published composition, drawn shapes, what is
needed of the gradients, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops
from dmtl.ops.condition_tokens import GEOMETRY

from .maps import LAYOUTS, drawn_map
from .tools import DEVICE, backend_params, missing

# Largest error of a value or gradient, relative to the largest true one (at least 1).
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 4e-2, torch.float16: 8e-3}


def published(maps, weight3, bias, reduction):
    """Concatenation, 3x3 convolution, interpolation, a change of layout."""
    x = F.conv2d(torch.cat(maps, 1), weight3, bias, padding=1)
    if reduction > 1:
        x = F.interpolate(x, scale_factor=1 / reduction, mode="bilinear", align_corners=False)
    return x.flatten(2).transpose(1, 2)


def projected(tokens, norm_weight, norm_bias, query_weight, eps=1e-5):
    return F.linear(F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps), query_weight)


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_fold_is_exact(reduction):
    """The folded convolution is the convolution and the interpolation behind it, borders included, and so are
    the gradients through it."""
    maps = [torch.randn(2, c, 8, 12, dtype=torch.float64, requires_grad=True) for c in (3, 1)]
    weight3 = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64)
    actual, query = dmtl.ops.condition_tokens(
        maps, dmtl.ops.fold_reduction(weight3, reduction), bias, reduction=reduction
    )
    expected = published(maps, weight3, bias, reduction)
    assert query is None
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(actual)
    torch.testing.assert_close(
        torch.autograd.grad(actual, [weight3, *maps], grad),
        torch.autograd.grad(expected, [weight3, *maps], grad),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("backend", backend_params())
def test_against_published_composition(backend):
    """Values and gradients of the published sizes of PASCAL-Context's tasks, smaller maps."""
    maps = [torch.randn(2, c, 8, 12, device=DEVICE, requires_grad=True) for c in (21, 7, 2, 3, 1)]
    parameters = [torch.randn(shape, device=DEVICE) for shape in ((64, 34, 3, 3), 64, 64, 64, (48, 64))]
    parameters[0] /= 17
    weight3, bias, norm_weight, norm_bias, query_weight = [p.requires_grad_() for p in parameters]
    norm = dict(norm_weight=norm_weight, norm_bias=norm_bias, query_weight=query_weight)
    leaves = [*maps, weight3, bias, norm_weight, norm_bias, query_weight]
    expected = published(maps, weight3, bias, 4)
    expected = expected, projected(expected, **norm)
    with dmtl.ops.use_backend(condition_tokens=backend):
        actual = dmtl.ops.condition_tokens(
            maps, dmtl.ops.fold_reduction(weight3, 4), bias, reduction=4, **norm
        )
        weights = [torch.randn_like(out) for out in actual]
        grads = torch.autograd.grad(actual, leaves, weights)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, leaves, weights), strict=True):
        close(grad, wanted.double(), 5e-5)


def close(actual, expected, tolerance):
    if expected.numel():
        actual, expected = actual.detach().double(), expected.detach()
        error = float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        assert error <= tolerance, f"error {error}"


def check(backend, maps, parameters, reduction):
    """Values and gradients against the composition in float64. parameters: name -> tensor."""
    maps = [m.requires_grad_() for m in maps]
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    leaves, dtype = [*maps, *parameters.values()], maps[0].dtype
    with dmtl.ops.use_backend(condition_tokens=backend):
        tokens, query = dmtl.ops.condition_tokens(maps, **parameters, reduction=reduction)
        outs = [tokens] if query is None else [tokens, query]
        weights = [torch.randn(out.shape, device=DEVICE).to(dtype) for out in outs]
        grads = torch.autograd.grad(outs, leaves, weights)
    wide = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    wide_maps = [m.detach().double().requires_grad_() for m in maps]
    weight, bias = wide["weight"], wide.get("bias")
    grid = F.conv2d(torch.cat(wide_maps, 1), weight, bias, stride=reduction, padding=GEOMETRY[reduction][1])
    expected = [grid.flatten(2).transpose(1, 2)]
    if query is not None:
        norm = [wide.get(name) for name in ("norm_weight", "norm_bias", "query_weight")]
        expected.append(projected(expected[0], *norm))
        # What the query itself promises: it is computed from the tokens as they were rounded.
        close(query, projected(tokens.double(), *norm), TOLERANCE[dtype] / 4)
    wide_grads = torch.autograd.grad(
        expected, [*wide_maps, *wide.values()], [w.double() for w in weights], materialize_grads=True
    )
    for out, wanted in zip(outs, expected, strict=True):
        assert out.dtype == dtype and out.is_contiguous()
        close(out, wanted, TOLERANCE[dtype])
    for leaf, grad, wanted in zip(leaves, grads, wide_grads, strict=True):
        assert grad.dtype == dtype and grad.shape == leaf.shape
        close(grad, wanted, TOLERANCE[dtype])


@st.composite
def cases(draw, dtypes, largest_grid: int, most_channels: int, most_width: int, step: int):
    """(maps, parameters, reduction): one map or several, each of its own channels and layout; no samples; one
    token; with and without bias, norm parameters and query."""
    reduction, dtype = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(dtypes))
    samples = draw(st.integers(0, 3))
    h, w = (reduction * draw(st.integers(1, largest_grid)) for _ in "hw")
    channels = draw(st.lists(st.integers(1, most_channels), min_size=1, max_size=5))
    seed = draw(st.integers(0, 99))
    maps = [
        drawn_map((samples, c, h, w), dtype, draw(st.sampled_from(LAYOUTS)), seed + i)
        for i, c in enumerate(channels)
    ]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(DEVICE, dtype)

    # LayerNorm of one to three numbers turns roundings into anything.
    width = max(4, step * draw(st.integers(1, most_width // step)))
    k, total = GEOMETRY[reduction][0], sum(channels)
    parameters = dict(weight=random(width, total, k, k, scale=(total * k * k) ** -0.5))
    if draw(st.booleans()):
        parameters |= dict(bias=random(width))
    if draw(st.booleans()):
        query = step * draw(st.integers(1, most_width // step))
        parameters |= dict(query_weight=random(query, width, scale=width**-0.5))
        parameters |= {name: random(width) for name in ("norm_weight", "norm_bias") if draw(st.booleans())}
    return maps, parameters, reduction


@pytest.mark.parametrize("backend", backend_params("cpu", "cuda"))
@given(case=cases(tuple(TOLERANCE), largest_grid=4, most_channels=9, most_width=56, step=1))
@settings(max_examples=200)
def test_drawn_shapes(backend, case):
    check(backend, *case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("triton"))
@given(case=cases((torch.float32, torch.float16), largest_grid=3, most_channels=5, most_width=24, step=8))
@settings(max_examples=60)
def test_drawn_shapes_triton(backend, case):
    check(backend, *case)


@pytest.mark.parametrize("backend", backend_params())
def test_only_what_is_needed(backend):
    """Each leaf alone gets the gradient that it gets together with the others."""
    call = dict(maps=[torch.randn(2, c, 4, 8, device=DEVICE) for c in (3, 2)], reduction=4)
    shapes = dict(weight=(16, 5, 4, 4), bias=(16,), norm_weight=(16,), norm_bias=(16,), query_weight=(8, 16))
    call |= {name: torch.randn(shape, device=DEVICE) for name, shape in shapes.items()}
    leaves = [*call["maps"], *(call[name] for name in shapes)]

    def gradients(chosen):
        for leaf in leaves:
            leaf.requires_grad_(any(leaf is c for c in chosen))
        with dmtl.ops.use_backend(condition_tokens=backend):
            tokens, query = dmtl.ops.condition_tokens(**call)
        return torch.autograd.grad((tokens.square().sum() + query.square().sum()), chosen, allow_unused=True)

    together = gradients(leaves)
    for leaf, expected in zip(leaves, together, strict=True):
        torch.testing.assert_close(gradients([leaf])[0], expected)


def test_more_maps_than_a_kernel_takes():
    maps = [torch.randn(1, 1, 4, 4) for _ in range(17)]
    call = dict(maps=maps, weight=torch.randn(8, 17, 4, 4), reduction=4)
    tokens, _ = dmtl.ops.condition_tokens(**call)
    torch.testing.assert_close(tokens[0, 0], call["weight"].flatten(1) @ torch.cat(maps, 1).flatten())
    if not missing("cpu"):
        with (
            dmtl.ops.use_backend(condition_tokens="cpu"),
            pytest.raises(NotImplementedError, match="17 maps are more than 16"),
        ):
            dmtl.ops.condition_tokens(**call)


GOOD = dict(
    maps=[torch.zeros(2, 3, 4, 8), torch.zeros(2, 1, 4, 8)],
    weight=torch.zeros(8, 4, 4, 4),
    bias=torch.zeros(8),
    norm_weight=torch.zeros(8),
    norm_bias=torch.zeros(8),
    query_weight=torch.zeros(6, 8),
    reduction=4,
)
ONE = [torch.zeros(2, 4, 4, 8)]
BAD = [
    (dict(maps=torch.zeros(2, 4, 4, 8)), TypeError, "maps must be a list of tensors, got Tensor"),
    (dict(maps=[]), ValueError, "maps must be at least one tensor, got none"),
    (dict(maps=[1.0]), TypeError, r"maps\[0\] must be a tensor, got float"),
    (dict(maps=[*ONE, torch.zeros(2, 4, 4)]), ValueError, r"maps\[1\] must be of shape \[B, C_k, h, w\]"),
    (dict(maps=[torch.zeros(2, 0, 4, 8)]), ValueError, r"maps\[0\] must be of shape .*, got \[2, 0, 4, 8\]"),
    (dict(maps=[*ONE, torch.zeros(2, 1, 8, 8)]), ValueError, r"maps\[1\] must be .*, got \[2, 1, 8, 8\]"),
    (dict(maps=[*ONE, torch.zeros(2, 1, 4, 8).half()]), TypeError, r"maps\[1\] must be of maps\[0\]'s dtype"),
    (dict(maps=[torch.zeros(2, 4, 4, 8).int()]), TypeError, r"maps\[0\] must be float32, .*, got int32"),
    (dict(maps=[torch.zeros(2, 4, 6, 8)]), ValueError, "maps' h must be a multiple of reduction 4, got 6"),
    (dict(maps=[torch.zeros(2, 4, 8, 2)]), ValueError, "maps' w must be a multiple of reduction 4, got 2"),
    (dict(reduction=3), ValueError, "reduction must be 1, 2 or 4, got 3"),
    (dict(reduction=4.0), TypeError, "reduction must be an int, got float"),
    (
        dict(weight=torch.zeros(8, 4, 3, 3)),
        ValueError,
        r"weight must be .*\[8, 4, 4, 4\], got \[8, 4, 3, 3\]",
    ),
    (
        dict(weight=torch.zeros(8, 5, 4, 4)),
        ValueError,
        r"weight must be .*\[8, 4, 4, 4\], got \[8, 5, 4, 4\]",
    ),
    (dict(weight=torch.zeros(8, 4, 4, 4).half()), TypeError, r"weight must be of maps\[0\]'s dtype float32"),
    (dict(weight=[1.0]), TypeError, "weight must be a tensor, got list"),
    (dict(bias=torch.zeros(7)), ValueError, r"bias must be of shape .*, got \[7\]"),
    (dict(bias=torch.zeros(8, device="meta")), ValueError, "bias must be on cpu, got meta"),
    (dict(norm_weight=torch.zeros(7)), ValueError, r"norm_weight must be of shape .*, got \[7\]"),
    (dict(query_weight=torch.zeros(6, 7)), ValueError, r"query_weight must be of shape .*, got \[6, 7\]"),
    (dict(query_weight=None), ValueError, "norm_weight and norm_bias must be None without query_weight"),
    (dict(eps=0.0), ValueError, "eps must be positive, got 0.0"),
    (dict(eps=1), TypeError, "eps must be a float, got int"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^condition_tokens: {message}"):
        dmtl.ops.condition_tokens(**(GOOD | change))


def test_fold_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"^fold_reduction: weight must be of shape \[C, C_t, 3, 3\], got"):
        dmtl.ops.fold_reduction(torch.zeros(8, 4, 4, 4), 4)
    with pytest.raises(ValueError, match="^fold_reduction: reduction must be 1, 2 or 4, got 8"):
        dmtl.ops.fold_reduction(torch.zeros(8, 4, 3, 3), 8)
