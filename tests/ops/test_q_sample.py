"""q_sample beyond the generic tests: an independent composition, drawn shapes, bad arguments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops

from .tools import missing

ABAR = torch.tensor([0.999, 0.9, 0.5])
TABLES = dict(sqrt_abar_S=ABAR.sqrt(), sqrt_one_minus_abar_S=(1 - ABAR).sqrt())
BACKENDS = [name for name in ("reference", "cpu") if not missing(name)]


def composed(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise):
    """Row by row with scalar arithmetic of torch."""
    return torch.stack(
        [
            float(sqrt_abar_S[t]) * x + float(sqrt_one_minus_abar_S[t]) * e
            for x, t, e in zip(x0, t_B.tolist(), noise, strict=True)
        ]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_composition(backend):
    x0, noise, t_B = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.tensor([2, 0, 1])
    with dmtl.ops.use_backend(backend):
        torch.testing.assert_close(
            dmtl.ops.q_sample(x0, t_B, **TABLES, noise=noise), composed(x0, t_B, **TABLES, noise=noise)
        )
        key_B3 = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 3, 3]])
        drawn = dmtl.ops.normal(key_B3, (4, 5, 6), 8)
        torch.testing.assert_close(
            dmtl.ops.q_sample(x0, t_B, **TABLES, key_B3=key_B3, step=8),
            composed(x0, t_B, **TABLES, noise=drawn),
        )


@st.composite
def rows(draw):
    """A tensor [B, ...] of a drawn shape, dtype and layout, with t and keys."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    layout = draw(st.sampled_from(["dense", "channels_last", "sliced", "permuted"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if layout == "sliced":
        x = torch.randn([2 * size for size in shape], generator=generator)[
            tuple(slice(None, None, 2) for _ in shape)
        ]
    elif layout == "permuted":
        x = torch.randn(shape[::-1], generator=generator).permute(*reversed(range(len(shape))))
    else:
        x = torch.randn(shape, generator=generator)
        if layout == "channels_last" and len(shape) == 4:
            x = x.to(memory_format=torch.channels_last)
    t_B = torch.randint(0, 3, shape[:1], generator=generator)
    key_B3 = torch.randint(0, 2**32, (shape[0], 3), generator=generator)
    return x.to(dtype), t_B, key_B3


@pytest.mark.skipif(bool(missing("cpu")), reason=missing("cpu"))
@given(case=rows(), drawn=st.booleans(), step=st.integers(0, 65535))
@settings(max_examples=200)
def test_drawn_shapes(case, drawn, step):
    """The C++ kernel against the reference in float64: one rounding of the result apart, same strides."""
    x0, t_B, key_B3 = case
    noise = dict(key_B3=key_B3, step=step) if drawn else dict(noise=torch.randn_like(x0))
    with dmtl.ops.use_backend("cpu"):
        actual = dmtl.ops.q_sample(x0, t_B, **TABLES, **noise)
    with dmtl.ops.use_backend("reference"):
        wide = noise if drawn else dict(noise=noise["noise"].double())
        expected = dmtl.ops.q_sample(x0.double(), t_B, **TABLES, **wide)
    assert actual.stride() == torch.empty_like(x0).stride()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[x0.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=2e-6)


def test_gradient_of_a_sum_is_the_coefficient():
    x0 = torch.randn(2, 3, requires_grad=True)
    noise = torch.randn(2, 3, requires_grad=True)
    dmtl.ops.q_sample(x0, torch.tensor([2, 0]), **TABLES, noise=noise).sum().backward()
    torch.testing.assert_close(x0.grad, ABAR[[2, 0]].sqrt().unsqueeze(1).expand(2, 3))
    torch.testing.assert_close(noise.grad, (1 - ABAR[[2, 0]]).sqrt().unsqueeze(1).expand(2, 3))


GOOD = dict(x0=torch.zeros(2, 3), t_B=torch.tensor([0, 1]), **TABLES, noise=torch.zeros(2, 3))
BAD = [
    (
        dict(x0=torch.zeros(2, 3, dtype=torch.int64)),
        TypeError,
        "x0 must be float32, bfloat16, float16 or float64, got int64",
    ),
    (
        dict(x0=torch.zeros(())),
        ValueError,
        r"x0 must be of shape \[B, ...\], got a tensor without dimensions",
    ),
    (dict(t_B=torch.tensor([0.0, 1.0])), TypeError, "t_B must be int64, got float32"),
    (dict(t_B=torch.tensor([0])), ValueError, r"t_B must be of shape \[2\], got \[1\]"),
    (dict(t_B=torch.tensor([0, 3])), ValueError, r"t_B must be in \[0, 3\), got 3"),
    (dict(t_B=torch.tensor([-1, 0])), ValueError, r"t_B must be in \[0, 3\), got -1"),
    (
        dict(sqrt_abar_S=torch.zeros(3, dtype=torch.float64)),
        TypeError,
        "sqrt_abar_S must be float32, got float64",
    ),
    (dict(sqrt_abar_S=torch.zeros(0)), ValueError, r"sqrt_abar_S must be of shape \[S\], got \[0\]"),
    (
        dict(sqrt_one_minus_abar_S=torch.zeros(2)),
        ValueError,
        r"sqrt_one_minus_abar_S must be of shape \[3\], got \[2\]",
    ),
    (dict(noise=torch.zeros(2, 4)), ValueError, r"noise must be of x0's shape \[2, 3\], got \[2, 4\]"),
    (dict(noise=torch.zeros(2, 3).half()), TypeError, "noise must be of x0's dtype float32, got float16"),
    (dict(noise=torch.zeros(2, 3, device="meta")), ValueError, "noise must be on cpu, got meta"),
    (dict(noise=None), ValueError, "noise must be given, or else key_B3, got neither"),
    (
        dict(key_B3=torch.zeros(2, 3, dtype=torch.int64)),
        ValueError,
        "noise must be None when key_B3 is given, got both",
    ),
    (
        dict(noise=None, key_B3=torch.zeros(2, 2, dtype=torch.int64)),
        ValueError,
        r"key_B3 must be of shape \[2, 3\], got \[2, 2\]",
    ),
    (dict(noise=None, key_B3=torch.zeros(2, 3)), TypeError, "key_B3 must be int64, got float32"),
    (
        dict(noise=None, key_B3=torch.tensor([[0, -1, 0]] * 2)),
        ValueError,
        r"\(task\) must be in \[0, 2\*\*32\), got -1",
    ),
    (
        dict(noise=None, key_B3=torch.tensor([[0, 0, 2**48]] * 2)),
        ValueError,
        r"\(sample\) must be in \[0, 2\*\*48\), got",
    ),
    (dict(step=65536), ValueError, r"step must be in \[0, 65536\), got 65536"),
    (dict(step=1.0), TypeError, "step must be an int, got float"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^q_sample: .*{message}"):
        dmtl.ops.q_sample(**(GOOD | change))
