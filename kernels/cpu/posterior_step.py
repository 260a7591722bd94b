"""posterior_step and its backward by the C++ kernels in csrc/cpu/posterior_step.cpp."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels._native import CPU
from dmtl.kernels._noising import noising, scaling

SUPPORT = CPU.support()


def posterior_step(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> Tensor:
    return noising(CPU, "posterior_step", x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)


def posterior_step_(x_t, x0_hat, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> None:
    args = (x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)
    noising(CPU, "posterior_step", *args, out=x_t)


def posterior_step_backward(
    grad_prev, t_B, coef1_S, coef2_S, sigma_S, need_x0_hat, need_x_t, need_noise
) -> tuple[Tensor, Tensor, Tensor]:
    needed = (need_x0_hat, need_x_t, need_noise)
    return scaling(CPU, "posterior_step_backward", grad_prev, t_B, (coef1_S, coef2_S, sigma_S), needed)
