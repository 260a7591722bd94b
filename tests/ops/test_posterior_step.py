"""posterior_step beyond the generic tests: an independent composition, the last step, no noise, bad
arguments."""

from __future__ import annotations

import pytest
import torch

import dmtl.ops
from dmtl.ops.posterior_step import SPEC

from .tools import DEVICE, DTYPES, backend_params, missing

TABLES = dict(
    coef1_S=torch.tensor([1.0, 0.7, 0.4]),
    coef2_S=torch.tensor([0.0, 0.3, 0.6]),
    sigma_S=torch.tensor([0.0, 0.1, 0.2]),
)
KEYS = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 3, 3]])
BACKENDS = [name for name in ("reference", "cpu") if not missing(name)]


def composed(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise):
    """Row by row with scalar arithmetic of torch."""
    return torch.stack(
        [
            float(coef1_S[t]) * x0_hat[b] + float(coef2_S[t]) * x_t[b] + float(sigma_S[t]) * noise[b]
            for b, t in enumerate(t_B.tolist())
        ]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_composition(backend):
    x0_hat, x_t, noise = torch.randn(3, 3, 4, 6, 5)
    t_B = torch.tensor([2, 0, 1])
    with dmtl.ops.use_backend(backend):
        actual = dmtl.ops.posterior_step(x0_hat, x_t, t_B, **TABLES, noise=noise)
        torch.testing.assert_close(actual, composed(x0_hat, x_t, t_B, **TABLES, noise=noise))
        actual = dmtl.ops.posterior_step(x0_hat, x_t, t_B, **TABLES, key_B3=KEYS, step=1)
        drawn = dmtl.ops.normal(KEYS, (4, 6, 5), 1)
        torch.testing.assert_close(actual, composed(x0_hat, x_t, t_B, **TABLES, noise=drawn))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", BACKENDS)
def test_last_step_is_the_identity(backend, layout):
    """With (1, 0, 0) the result is x0_hat to the bit, whatever the noise says."""
    x0_hat, x_t = torch.randn(2, 3, 4, 6, 6)
    x0_hat, x_t = x0_hat.to(memory_format=layout), x_t.to(memory_format=layout)
    t_B = torch.zeros(3, dtype=torch.int64)
    with dmtl.ops.use_backend(backend):
        for noise in ({}, dict(key_B3=KEYS), dict(noise=torch.full_like(x0_hat, torch.inf))):
            assert torch.equal(dmtl.ops.posterior_step(x0_hat, x_t, t_B, **TABLES, **noise), x0_hat)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_and_without_noise(backend):
    """sigma = 0 silences single rows of a batch; without a source no row gets noise."""
    x0_hat, x_t = torch.randn(2, 3, 64)
    t_B = torch.tensor([1, 0, 2])
    silent = TABLES | dict(sigma_S=torch.tensor([0.0, 0.0, 0.2]))
    with dmtl.ops.use_backend(backend):
        drawn = dmtl.ops.posterior_step(x0_hat, x_t, t_B, **silent, key_B3=KEYS)
        plain = dmtl.ops.posterior_step(x0_hat, x_t, t_B, **silent)
    assert torch.equal(drawn[:2], plain[:2])
    assert not torch.isclose(drawn[2], plain[2]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backend_params(slow="triton"))
def test_in_place_is_the_same_to_the_bit(backend, dtype):
    """x_t becomes the result, whatever the layouts, and stays where it was."""
    for size in ("tiny", "odd"):
        for sample in SPEC.samples(size, dtype, DEVICE):
            with dmtl.ops.use_backend(posterior_step=backend):
                expected = dmtl.ops.posterior_step(**sample)
                place = sample["x_t"].data_ptr(), sample["x_t"].stride()
                out = dmtl.ops.posterior_step_(**sample)
            assert out is sample["x_t"] and (out.data_ptr(), out.stride()) == place
            assert torch.equal(out, expected)


@pytest.mark.parametrize("channels", [3, 8, 12, 72])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backend_params(slow="triton"))
def test_channels_last_is_the_same_to_the_bit(backend, dtype, channels):
    """As dense rows: noise sampled, given and none, in place or not, whole vectors of channels or not."""
    x0_hat, x_t, noise = torch.randn(3, 3, channels, 6, 10, device=DEVICE).to(dtype)
    t_B = torch.tensor([1, 0, 2], device=DEVICE)
    tables = {name: table.to(DEVICE) for name, table in TABLES.items()}
    last = {name: z.contiguous(memory_format=torch.channels_last) for name, z in
            dict(x0_hat=x0_hat, x_t=x_t, noise=noise).items()}  # fmt: skip
    with dmtl.ops.use_backend(posterior_step=backend, q_sample=backend):
        for dense, other in (
            (dict(key_B3=KEYS.to(DEVICE), step=3),) * 2,
            (dict(noise=noise), dict(noise=last["noise"])),
            ({}, {}),
        ):
            expected = dmtl.ops.posterior_step(x0_hat, x_t, t_B, **tables, **dense)
            found = dmtl.ops.posterior_step(last["x0_hat"], last["x_t"], t_B, **tables, **other)
            assert torch.equal(found, expected) and found.stride() == last["x_t"].stride()
            place = last["x_t"].clone()
            assert torch.equal(
                dmtl.ops.posterior_step_(place, last["x0_hat"], t_B, **tables, **other), expected
            )
        shared = (t_B, tables["coef1_S"], tables["sigma_S"])
        samples = [dmtl.ops.q_sample(x, *shared, key_B3=KEYS.to(DEVICE)) for x in (x0_hat, last["x0_hat"])]
        assert torch.equal(*samples)


def test_in_place_into_a_slice_writes_nothing_else():
    whole = torch.randn(4, 5, 6, 8)
    before, x_t = whole.clone(), whole[::2, 1:4]
    x0_hat = torch.randn(2, 3, 6, 8)
    t_B = torch.tensor([1, 2])
    expected = dmtl.ops.posterior_step(x0_hat, x_t, t_B, **TABLES)
    dmtl.ops.posterior_step_(x_t, x0_hat, t_B, **TABLES)
    before[::2, 1:4] = expected
    assert torch.equal(whole, before)


def test_in_place_refuses_what_autograd_needs():
    """A gradient to record is refused here; a backward pass that saved x_t refuses to run."""
    x_t, x0_hat, t_B = torch.randn(2, 3), torch.randn(2, 3, requires_grad=True), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="posterior_step_: x0_hat must be without a gradient to record, got"):
        dmtl.ops.posterior_step_(x_t, x0_hat, t_B, **TABLES)
    saved = (x0_hat * x_t).sum()
    with torch.no_grad():
        dmtl.ops.posterior_step_(x_t, x0_hat, t_B, **TABLES)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_in_place_refuses_overlapping_rows():
    x_t = torch.randn(1, 8).expand(3, 8)
    with pytest.raises(RuntimeError, match="single memory location"):
        dmtl.ops.posterior_step_(x_t, torch.randn(3, 8), torch.tensor([1, 2, 1]), **TABLES)


@pytest.mark.parametrize("backend", backend_params("reference", "cpu", "cuda"))
def test_in_place_operator(backend):
    """Schema (what is written), fake, and AOT dispatch; one graph, with the eager values."""
    for sample in SPEC.samples("odd", torch.float32, DEVICE)[:3]:
        given = {name: value for name, value in sample.items() if name not in ("x_t", "x0_hat")}
        args = [
            sample["x_t"],
            sample["x0_hat"],
            *(given.get(name) for name in ARGUMENTS),
            given.get("step", 0),
        ]
        with dmtl.ops.use_backend(posterior_step=backend):
            torch.library.opcheck(torch.ops.dmtl.posterior_step_.default, args)
    torch.compiler.reset()
    compiled = torch.compile(dmtl.ops.posterior_step_, fullgraph=True, backend="aot_eager")
    expected = dmtl.ops.posterior_step(**sample)
    assert torch.equal(compiled(**sample), expected) and torch.equal(sample["x_t"], expected)


ARGUMENTS = ("t_B", "coef1_S", "coef2_S", "sigma_S", "noise", "key_B3")
GOOD = dict(x0_hat=torch.zeros(2, 3), x_t=torch.zeros(2, 3), t_B=torch.tensor([0, 1]), **TABLES)
BAD = [
    (
        dict(x_t=torch.zeros(2, 3).bfloat16()),
        TypeError,
        "x_t must be of x0_hat's dtype float32, got bfloat16",
    ),
    (dict(x_t=torch.zeros(3, 3)), ValueError, r"x_t must be of x0_hat's shape \[2, 3\], got \[3, 3\]"),
    (dict(x_t=None), TypeError, "x_t must be a tensor, got NoneType"),
    (dict(t_B=torch.tensor([1, 3])), ValueError, r"t_B must be in \[0, 3\), got 3"),
    (dict(sigma_S=torch.zeros(4)), ValueError, r"sigma_S must be of shape \[3\], got \[4\]"),
    (
        dict(noise=torch.zeros(2, 3), key_B3=torch.zeros(2, 3).long()),
        ValueError,
        "noise must be None when key_B3 is given, got both",
    ),
    (dict(step=-1), ValueError, r"step must be in \[0, 65536\), got -1"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^posterior_step: .*{message}"):
        dmtl.ops.posterior_step(**(GOOD | change))


def test_bad_arguments_in_place():
    with pytest.raises(ValueError, match=r"^posterior_step: t_B must be in \[0, 3\), got 3"):
        dmtl.ops.posterior_step_(**(GOOD | dict(t_B=torch.tensor([1, 3]))))
    with pytest.raises(
        ValueError, match=r"^posterior_step_: x0_hat must be of x_t's shape \[2, 3\], got \[3, 3\]"
    ):
        dmtl.ops.posterior_step_(**(GOOD | dict(x0_hat=torch.zeros(3, 3))))
