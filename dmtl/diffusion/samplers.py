"""Samplers: from the noise levels of a chain to the coefficients of its steps.

Symbols as in `dmtl.diffusion.schedule`; x0_hat is the denoiser's estimate at x_t. A step from level t to the
next lower level s is

    x_s = coef1 D + coef2 x_t + sigma eps,      D = mix[0] x0_hat + mix[1] (x0_hat one step before) + ...

so that one fused operator (`dmtl.ops.posterior_step`) computes the steps of every sampler, on every device,
in an engine and in an exported file. A sampler is a function that returns the coefficients of each step; it
is called once per chain. Below the lowest level abar = 1: the last step returns its x0_hat.

    ddim        sigma = eta sqrt((1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s))
                coef2 = sqrt(1 - abar_s - sigma^2) / sqrt(1 - abar_t)
                coef1 = sqrt(abar_s) - coef2 sqrt(abar_t)
                (arXiv 2010.02502, eq. 12)
    ancestral   ddim with eta = 1, the posterior of DDPM (arXiv 2006.11239, eqs. 6-7)
    dpmpp_2m    ddim with eta = 0, but D = x0_hat + h / (2 h') (x0_hat - x0_hat one step before)
                h = lambda_s - lambda_t of this step, h' of the step before
                lambda = log(sqrt(abar) / sqrt(1 - abar))
                (DPM-Solver++ 2M, arXiv 2211.01095, algorithm 2). Its first step is ddim's.

ddim with eta = 0 solves the probability-flow ODE to first order, dpmpp_2m to second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from dmtl.errors import ConfigError
from dmtl.registry import Registry


class Coefficients(NamedTuple):
    """One step: x_s = coef1 D + coef2 x_t + sigma eps.

    mix: weights of the newest estimate and of earlier ones, which make up D. The chain keeps as many earlier
    estimates as the longest `mix` of a sampler needs.
    """

    coef1: float
    coef2: float
    sigma: float = 0.0
    mix: tuple[float, ...] = (1.0,)


Sampler = Callable[[Sequence[float]], list[Coefficients]]
"""abar at the K levels, the cleanest first -> the coefficients of the step down from each level.

The chain visits the last level first. All are plain floats, which `torch.compile` folds into the graph.
"""

SAMPLERS: Registry[Sampler] = Registry("sampler")


def make_sampler(name: str, eta: float | None = None, where: str = "") -> Sampler:
    """Return the sampler of that name.

    Args:
        eta: share of the ancestral noise that "ddim" adds, in [0, 1]; None: as the sampler is defined.
        where: prefix of the keys in an error message, such as "model.".

    Raises:
        ConfigError: the name is unknown, or the sampler has no `eta`.
    """
    sampler = SAMPLERS.get(name, f"{where}sampler")
    if eta is None:
        return sampler
    if name != "ddim":
        raise ConfigError(f'{where}eta is only an option of the sampler "ddim", got {eta} with "{name}"')
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(f"{where}eta must be in [0, 1], got {eta}")
    return partial(ddim, eta=eta)


@SAMPLERS.register("ancestral")
def ancestral(abar: Sequence[float]) -> list[Coefficients]:
    """Draw every x_s from the posterior given x_t and x0_hat, as published."""
    return ddim(abar, eta=1.0)


def ddim(abar: Sequence[float], eta: float = 0.0) -> list[Coefficients]:
    """Add `eta` times the ancestral noise; none by default."""
    steps, below = [], 1.0
    for level in abar:
        sigma = eta * math.sqrt((1 - below) / (1 - level) * (1 - level / below))
        coef2 = math.sqrt(max(1 - below - sigma**2, 0.0)) / math.sqrt(1 - level)
        coef1 = math.sqrt(below) - coef2 * math.sqrt(level)
        steps.append(Coefficients(coef1, coef2, sigma))
        below = level
    return steps


SAMPLERS.register("ddim")(ddim)  # as a decorator it would hide `eta` from type checkers


@SAMPLERS.register("dpmpp_2m")
def dpmpp_2m(abar: Sequence[float]) -> list[Coefficients]:
    """Solve the probability-flow ODE to second order, without noise; the best choice for many steps."""
    steps = ddim(abar)
    lambdas = [0.5 * math.log(level / (1 - level)) for level in abar]
    for i in range(1, len(steps) - 1):
        before, now = lambdas[i] - lambdas[i + 1], lambdas[i - 1] - lambdas[i]
        if before > 0:  # 0 if a schedule of one level is run in several steps
            half = now / (2 * before)
            steps[i] = steps[i]._replace(mix=(1 + half, -half))
    return steps
