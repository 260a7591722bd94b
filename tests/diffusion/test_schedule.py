"""Schedule and plans against the formulas of DDPM and DDIM in float64, and against the published tables."""

import math

import numpy as np
import pytest
import torch

from dmtl.diffusion import Schedule, make_sampler
from dmtl.models.published import published_buffers

RANGES = [(1, 1e-3, 1e-2), (2, 1e-3, 1e-2), (3, 1e-4, 2e-2), (10, 1e-3, 0.3), (50, 8.5e-4, 1.2e-2)]


@pytest.mark.parametrize(("steps", "start", "end"), RANGES)
def test_ancestral_plan_is_the_published_posterior(steps, start, end):
    schedule = Schedule.from_range(steps, start, end)
    plan, published = schedule.plan(), published_buffers(schedule)
    assert plan.levels == tuple(float(i) for i in range(steps))
    close = dict(rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(plan.sqrt_abar, published["sqrt_alphas_cumprod"], **close)
    torch.testing.assert_close(plan.sqrt_one_minus_abar, published["sqrt_one_minus_alphas_cumprod"], **close)
    torch.testing.assert_close(plan.coef1, published["posterior_mean_coef1"], **close)
    torch.testing.assert_close(plan.coef2, published["posterior_mean_coef2"], **close)
    torch.testing.assert_close(plan.sigma, published["posterior_variance"].sqrt(), **close)
    assert (plan.coef1[0], plan.coef2[0], plan.sigma[0]) == (1, 0, 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_step_is_ddims(steps, eta):
    """x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps_hat +
    sigma z, eps_hat from x_t (DDIM eq. 12)."""
    schedule = Schedule.from_range(7, 1e-3, 0.2)
    plan = schedule.plan(steps, make_sampler("ddim", eta))
    x0, x_t, z = 0.7, -1.3, 0.4
    log_abar = np.log(np.cumprod(1 - schedule.betas))
    abar = np.exp(np.interp(plan.levels, range(7), log_abar))
    for i in range(1, steps):
        sigma = eta * math.sqrt((1 - abar[i - 1]) / (1 - abar[i]) * (1 - abar[i] / abar[i - 1]))
        eps_hat = (x_t - math.sqrt(abar[i]) * x0) / math.sqrt(1 - abar[i])
        expected = math.sqrt(abar[i - 1]) * x0 + math.sqrt(1 - abar[i - 1] - sigma**2) * eps_hat + sigma * z
        assert float(plan.coef1[i] * x0 + plan.coef2[i] * x_t + plan.sigma[i] * z) == pytest.approx(
            expected, rel=1e-5
        )
    assert plan.sigma[0] == 0 and plan.coef1[0] == 1
    assert eta > 0 or not plan.sigma.any()


@pytest.mark.parametrize("own", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_levels_rise_from_clean_to_the_noisiest(own, steps):
    plan = Schedule.from_range(own, 1e-3, 0.1).plan(steps)
    assert len(plan.levels) == steps and plan.levels[-1] == own - 1
    levels, noise = np.array(plan.levels), plan.sqrt_one_minus_abar.numpy()
    if own > 1:
        assert np.all(np.diff(levels) > 0) and np.all(np.diff(noise) > 0)
    if steps <= own:
        assert all(level == int(level) for level in levels)
    torch.testing.assert_close(plan.sqrt_abar**2 + plan.sqrt_one_minus_abar**2, torch.ones(steps))
    assert all(getattr(plan, name).dtype == torch.float32 for name in ("coef1", "coef2", "sigma"))


def test_whole_plan_from_one_level():
    """A schedule of one level has nothing between its level and the clean map."""
    plan = Schedule.from_range(1).plan(3)
    assert plan.levels == (0.0, 0.0, 0.0)
    assert torch.isfinite(plan.coef1).all() and torch.isfinite(plan.sigma).all()


def test_published_constants():
    published = published_buffers(Schedule.from_range(2))
    assert len(published) == 12
    for name, expected in {
        "betas": [1e-3, 1e-2],
        "alphas_cumprod": [0.999, 0.98901],
        "posterior_variance": [0, 9.0992e-4],
        "posterior_mean_coef1": [1, 0.909463],
        "posterior_mean_coef2": [0, 0.0905357],
        "posterior_log_variance_clipped": [-46.0517, -7.0022],
    }.items():
        np.testing.assert_allclose(published[name], expected, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("betas", [[], [0.0], [1.0], [0.1, float("nan")], [[0.1]], [-0.1, 0.1]])
def test_senseless_betas(betas):
    with pytest.raises(ValueError, match="Schedule: betas must be"):
        Schedule(betas)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((0,), "steps"), ((2, 0.0, 0.1), "betas"), ((2, 0.2, 0.1), "betas"), ((2, 0.1, 1.0), "betas")],
)
def test_senseless_range(arguments, named):
    with pytest.raises(ValueError, match=f"Schedule: {named} must"):
        Schedule.from_range(*arguments)


def test_senseless_plan():
    schedule = Schedule.from_range(2)
    schedule.plan(2)
    with pytest.raises(ValueError, match="plan: steps must be at least 1, got 0"):
        schedule.plan(0)
    for wrong in ([(1.0, 0.0, 0.0, (1.0,))], [(1.0, 0.0, 0.0, (1.0,)), (1.0, 0.0, 0.0, (2.0, -1.0))]):
        with pytest.raises(ValueError, match="plan: the sampler must return 2 steps"):
            schedule.plan(2, lambda abar, steps=wrong: steps)
