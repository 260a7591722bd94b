"""Samplers against their ODE, against one another on a model, and what a chain keeps for them."""

import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dmtl.diffusion import (
    SAMPLERS,
    ArrayNoise,
    Coefficients,
    CounterNoise,
    Pairs,
    Schedule,
    make_sampler,
    noising,
    reverse_chain,
)
from dmtl.engine.engine import Engine
from dmtl.errors import ConfigError
from tests.models.cases import small_model

SCHEDULE = Schedule([0.1, 0.8])  # abar from 0.9 down to 0.18, log abar linear in the level in between
LOG_ABAR = np.log(SCHEDULE.abar)
NOISY = np.linspace(-2.0, 2.0, 9)  # x at the noisiest level


def estimate(x, log_abar: float):
    """E[x0 | x] for x0 from 0.3 N(-1, 0.6^2) + 0.7 N(1.2, 0.6^2): what a perfect denoiser gives."""
    alpha, variance = math.exp(log_abar / 2), 1 - math.exp(log_abar)
    spread = alpha**2 * 0.36 + variance
    weights, means = [], []
    for share, centre in ((0.3, -1.0), (0.7, 1.2)):
        off = x - alpha * centre
        weights.append(share * np.exp(-(off**2) / (2 * spread)))
        means.append(centre + 0.36 * alpha / spread * off)
    return sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)


def solution() -> np.ndarray:
    """x at the lowest level by Runge-Kutta: d(x / alpha) = eps d(sigma / alpha) (DDIM, eq. 14)."""

    def slope(log_abar, x):
        alpha, sigma = math.exp(log_abar / 2), math.sqrt(1 - math.exp(log_abar))
        eps = (x - alpha * estimate(x, log_abar)) / sigma
        return x / 2 - eps * math.exp(-log_abar / 2) / (2 * sigma / alpha)

    span = (LOG_ABAR[1], LOG_ABAR[0])
    return solve_ivp(slope, span, NOISY, method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]


def walked(name: str, steps: int) -> np.ndarray:
    """x at the lowest level by the chain, in float64."""
    plan, seen = SCHEDULE.plan(steps, make_sampler(name)), []

    def denoise(x, level):
        seen.append(x[0].clone())
        log_abar = np.interp(level, [0, 1], LOG_ABAR)
        return [torch.from_numpy(estimate(x[0].numpy(), log_abar))]

    start = torch.from_numpy(NOISY)[:, None].clone()
    draws = [CounterNoise(0).draws(Pairs.of({"a": None}, len(start)), start)]
    with torch.no_grad():
        list(reverse_chain(denoise, [start], plan, draws))
    return seen[-1][:, 0].numpy()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order):
    """Twice the steps, a half or a quarter of the error: a scheme of another order fails."""
    exact = solution()
    errors = [np.linalg.norm(walked(name, steps) - exact) for steps in (33, 65, 129)]
    for coarse, fine in itertools.pairwise(errors):
        assert 2**order * 0.9 < coarse / fine < 2**order * 1.1
    assert errors[-1] < {1: 2e-2, 2: 5e-4}[order]


def test_2m_as_published():
    """Algorithm 2 of the paper in its own symbols, step by step, on levels of unequal distance."""
    schedule = Schedule.from_range(9, 1e-3, 0.4)
    plan = schedule.plan(6, make_sampler("dpmpp_2m"))
    alpha, sigma = (t.double() for t in (plan.sqrt_abar, plan.sqrt_one_minus_abar))
    lam = torch.log(alpha / sigma)
    generator = torch.Generator().manual_seed(0)
    x, x0, before = torch.randn(3, 7, generator=generator).double()
    for i in range(5, 0, -1):
        h = lam[i - 1] - lam[i]
        mixed = x0
        if i < 5:
            r = (lam[i] - lam[i + 1]) / h
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        expected = sigma[i - 1] / sigma[i] * x - alpha[i - 1] * torch.expm1(-h) * mixed
        ours = sum(w * e for w, e in zip(plan.mix[i], (x0, before), strict=False))
        found = plan.coef1[i] * ours + plan.coef2[i] * x
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not plan.sigma.any() and plan.mix[0] == plan.mix[5] == (1.0,) and plan.history == 1


def test_ancestral_is_ddim_with_all_its_noise():
    abar = [0.9, 0.5, 0.2]
    assert make_sampler("ancestral")(abar) == make_sampler("ddim", 1.0)(abar) != make_sampler("ddim")(abar)
    assert make_sampler("ddim")(abar) == make_sampler("ddim", 0.0)(abar)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match=r"model.sampler must be one of ancestral.*did you mean 'ddim'"):
        make_sampler("ddin", where="model.")
    with pytest.raises(
        ConfigError, match=r'eta is only an option of the sampler "ddim", got 1.0 with "dpmpp_2m"'
    ):
        make_sampler("dpmpp_2m", 1.0)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"eta must be in \[0, 1\]"):
            make_sampler("ddim", eta)


# the chain


def third_order(abar):
    """Three estimates in every step that can have them."""
    mixes = [(1.0,), (1.5, -0.5), (2.0, -1.5, 0.5)]
    return [Coefficients(0.4, 0.6, 0.1, mixes[min(len(abar) - 1 - i, 2)]) for i in range(len(abar))]


@pytest.mark.parametrize("grad", [True, False])
def test_a_chain_with_a_history(grad):
    plan = SCHEDULE.plan(5, third_order)
    arrays = {"a": torch.randn(5, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))}
    start = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    draws = [ArrayNoise(arrays).draws(Pairs.of({"a": None}, 3), start)]

    def denoise(x, level):
        return [torch.tanh(x[0]) + level]

    with torch.set_grad_enabled(grad):
        found = list(reverse_chain(denoise, noising([start], plan, draws), plan, draws, lambda x: 2 * x))
    x, seen = noising([start], plan, draws)[0], []
    for k, i in enumerate(reversed(range(5))):
        seen.insert(0, 2 * denoise([x], plan.levels[i])[0])
        torch.testing.assert_close(2 * found[k][0], seen[0])
        mixed = sum(w * e for w, e in zip(plan.mix[i], seen, strict=False))
        x = 0.4 * mixed + 0.6 * x + 0.1 * arrays["a"][min(k + 1, 4)]


@pytest.mark.parametrize(("name", "kept"), [("ancestral", 0), ("dpmpp_2m", 1)])
def test_memory_does_not_grow_with_the_steps(name, kept):
    """When the denoiser is called, only so many of its earlier estimates are alive."""
    alive: list[weakref.ref] = []
    most = 0

    def denoise(x, level):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        clean = torch.tanh(x[0])
        alive.append(weakref.ref(clean))
        return [clean]

    plan, start = SCHEDULE.plan(12, make_sampler(name)), torch.randn(2, 3, 4, 4)
    draws = [CounterNoise(0).draws(Pairs.of({"a": None}, 2), start)]
    with torch.no_grad():
        for _ in reverse_chain(denoise, [start], plan, draws, every=False):
            pass
    assert most == kept


# models


def test_on_a_model():
    """With many steps both solvers give the same maps; with few the second order is nearer to them."""
    model = small_model(steps=8, beta_start=0.01, beta_end=0.3, signal_scale=0.5)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))

    def maps(sampler, steps):
        with torch.no_grad():
            return torch.cat([m.flatten() for m in model(image, sampler=sampler, steps=steps).final.values()])

    exact, reference = maps("ddim", 120), maps("dpmpp_2m", 48)
    scale = exact.std()
    assert (reference - exact).abs().max() < 0.01 * scale
    first, second = ((maps(s, 8) - reference).abs().max() for s in ("ddim", "dpmpp_2m"))
    assert first > 0.01 * scale and second < first / 2


def test_engine_and_model_agree():
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    model = small_model(steps=3, beta_end=0.3, sampler="dpmpp_2m")
    other = small_model(steps=3, beta_end=0.3)
    with torch.no_grad():
        expected, ancestral = model(image, steps=5).final, other(image, steps=5).final
    engines = [
        Engine(model, precision="fp32", steps=5),
        Engine(other, precision="fp32", steps=5, sampler="dpmpp_2m"),
    ]
    for found in (*(engine(image).final for engine in engines), engines[1](image, sampler="dpmpp_2m").final):
        for task, value in expected.items():
            torch.testing.assert_close(found[task], value, rtol=1e-3, atol=1e-3)
            assert not torch.allclose(value, ancestral[task], rtol=1e-2, atol=1e-2)
    for task, value in engines[1](image, eta=1.0).final.items():
        torch.testing.assert_close(value, ancestral[task], rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="sampler must be one of"):
        Engine(other, sampler="euler")


def test_a_registered_sampler_is_a_configuration():
    SAMPLERS.register("half")(lambda abar: make_sampler("ddim", 0.5)(abar))
    try:
        image = torch.randn(1, 3, 32, 32)
        ours, theirs = small_model(sampler="half"), small_model(eta=0.5)
        with torch.no_grad():
            for task, value in theirs(image).final.items():
                assert torch.equal(ours(image).final[task], value)
    finally:
        del SAMPLERS._entries["half"]
