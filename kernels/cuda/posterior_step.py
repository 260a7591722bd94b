"""posterior_step and its backward by the CUDA kernels in kernels/cuda/posterior_step.cu."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels._native import CUDA
from dmtl.kernels._noising import noising, scaling

SUPPORT = CUDA.support()


def posterior_step(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> Tensor:
    return noising(CUDA, "posterior_step", x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)


def posterior_step_(x_t, x0_hat, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> None:
    args = (x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)
    noising(CUDA, "posterior_step", *args, out=x_t)


def posterior_step_backward(
    grad_prev, t_B, coef1_S, coef2_S, sigma_S, need_x0_hat, need_x_t, need_noise
) -> tuple[Tensor, Tensor, Tensor]:
    needed = (need_x0_hat, need_x_t, need_noise)
    return scaling(CUDA, "posterior_step_backward", grad_prev, t_B, (coef1_S, coef2_S, sigma_S), needed)
