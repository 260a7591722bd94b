"""posterior_step and its backward in Triton."""

from __future__ import annotations

from dmtl.kernels.triton._noising import SUPPORT, noising, scaling
from torch import Tensor

__all__ = ["SUPPORT", "posterior_step", "posterior_step_", "posterior_step_backward"]


def posterior_step(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> Tensor:
    return noising(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)


def posterior_step_(x_t, x0_hat, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> None:
    noising(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step, out=x_t)


def posterior_step_backward(
    grad_prev, t_B, coef1_S, coef2_S, sigma_S, need_x0_hat, need_x_t, need_noise
) -> tuple[Tensor, Tensor, Tensor]:
    return scaling(grad_prev, t_B, (coef1_S, coef2_S, sigma_S), (need_x0_hat, need_x_t, need_noise))
