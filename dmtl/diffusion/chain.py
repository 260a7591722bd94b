"""The unrolled chain: noise the initial signal of every task once, then denoise it K times.

All tasks walk together, so that a denoiser call sees every (sample, task) pair of the batch at once.
Shapes: a signal is a dict task -> [n_task, C_task, h, w]; `rows` says which batch rows a task's n_task rows
are (None: the whole batch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dmtl import ops
from dmtl.diffusion.noise import NoiseSource
from dmtl.diffusion.schedule import Plan

Signal = Mapping[str, Tensor]
Rows = Mapping[str, Tensor | None]


def noising(signal: Signal, rows: Rows, plan: Plan, noise: NoiseSource) -> dict[str, Tensor]:
    """x_t at the plan's noisiest level: sqrt(abar) x_0 + sqrt(1 - abar) eps, draw 0 of the noise."""
    start = len(plan.levels) - 1
    return {
        task: ops.q_sample(
            x0,
            _filled(x0, start),
            plan.sqrt_abar,
            plan.sqrt_one_minus_abar,
            **noise.arguments(task, 0, rows[task], x0),
        )
        for task, x0 in signal.items()
    }


def reverse_chain(
    denoise: Callable[[Signal, float], dict[str, Tensor]],
    x: Signal,
    rows: Rows,
    plan: Plan,
    noise: NoiseSource,
    to_signal: Callable[[Tensor], Tensor] = lambda estimate: estimate,
) -> list[dict[str, Tensor]]:
    """All K estimates of the clean signal, the last one being the result.

    Args:
        denoise: (x_t, level) -> estimate of the clean signal of every task (x0 parameterisation).
        x: the noised signal, from `noising`.
        to_signal: maps an estimate into the chain's space (signal scaling) before the posterior step.
    """
    estimates = []
    for i in reversed(range(len(plan.levels))):
        estimates.append(denoise(x, plan.levels[i]))
        if i > 0:
            draw = len(plan.levels) - i
            x = {
                task: ops.posterior_step(
                    to_signal(x0_hat).to(x[task].dtype),
                    x[task],
                    _filled(x0_hat, i),
                    plan.coef1,
                    plan.coef2,
                    plan.sigma,
                    **noise.arguments(task, draw, rows[task], x[task]),
                )
                for task, x0_hat in estimates[-1].items()
            }
    return estimates


def _filled(x: Tensor, value: int) -> Tensor:
    return torch.full((x.shape[0],), value, dtype=torch.int64, device=x.device)
