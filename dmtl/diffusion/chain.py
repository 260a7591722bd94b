"""The unrolled chain: noise the initial signals once, then denoise them K times.

All (sample, task) pairs of a batch are processed together. A signal is a packed tensor [R, C, h, w] whose
rows a `Pairs` describes. Signals of all tasks are one tensor if their channels agree (features), else one for
each task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dmtl import ops
from dmtl.diffusion.noise import Draws
from dmtl.diffusion.schedule import Plan


def noising(signals: Sequence[Tensor], plan: Plan, draws: Sequence[Draws]) -> list[Tensor]:
    """Return x_t at the noisiest level: sqrt(abar) x_0 + sqrt(1 - abar) eps, draw 0 of the noise.

    Args:
        draws: the noise of each signal, see `NoiseSource.draws`.
    """
    start = len(plan.levels) - 1
    return [
        ops.q_sample(x0, plan.index(start, x0.shape[0]), plan.sqrt_abar, plan.sqrt_one_minus_abar, **draw(0))
        for x0, draw in zip(signals, draws, strict=True)
    ]


def reverse_chain(
    denoise: Callable[[list[Tensor], float], list[Tensor]],
    x: list[Tensor],
    plan: Plan,
    draws: Sequence[Draws],
    to_signal: Callable[[Tensor], Tensor] = lambda estimate: estimate,
    every: bool = True,
) -> Iterator[list[Tensor]]:
    """Yield the K estimates of the clean signals; the last one is the result.

    Args:
        denoise: (x_t, level) -> estimates of the clean signals (x0 parameterisation), in newly allocated
            memory.
        x: the noised signals, from `noising`; overwritten by the steps if no gradient is recorded.
        to_signal: maps an estimate into the chain's space (signal scaling) before the posterior step.
        every: False: yield only the last estimate; no other is then in memory while it is computed.
    """
    history: list[list[Tensor]] = [[] for _ in x]  # earlier estimates of each signal, the newest first
    for i in reversed(range(len(plan.levels))):
        estimates = denoise(x, plan.levels[i])
        if every or i == 0:
            yield estimates
        if i > 0:
            number = len(plan.levels) - i
            known = [
                [to_signal(x0_hat).to(x_t.dtype), *earlier]
                for x0_hat, x_t, earlier in zip(estimates, x, history, strict=True)
            ]
            x = [
                _step(_mixed(estimate, plan.mix[i]), x_t, plan, i, **draw(number))
                for estimate, x_t, draw in zip(known, x, draws, strict=True)
            ]
            history = [estimate[: plan.history] for estimate in known]
            del estimates, known


def _mixed(estimates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the newest estimates; the newest one itself if it is the only one."""
    if len(weights) == 1:
        return estimates[0]
    total = weights[0] * estimates[0]
    for weight, estimate in zip(weights[1:], estimates[1:], strict=False):
        total = torch.add(total, estimate, alpha=weight)
    return total


def _step(x0_hat: Tensor, x_t: Tensor, plan: Plan, i: int, **noise: Any) -> Tensor:
    """Return x_{t-1}, in x_t's memory unless autograd may need x_t or a compiler plans the memory."""
    coefficients = (plan.index(i, x_t.shape[0]), plan.coef1, plan.coef2, plan.sigma)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return ops.posterior_step(x0_hat, x_t, *coefficients, **noise)
    return ops.posterior_step_(x_t, x0_hat, *coefficients, **noise)
