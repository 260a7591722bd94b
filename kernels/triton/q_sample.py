"""q_sample and its backward in Triton."""

from __future__ import annotations

from dmtl.kernels.triton._noising import SUPPORT, noising, scaling
from torch import Tensor

__all__ = ["SUPPORT", "q_sample", "q_sample_backward"]


def q_sample(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
    return noising(x0, None, t_B, sqrt_abar_S, None, sqrt_one_minus_abar_S, noise, key_B3, step)


def q_sample_backward(
    grad_xt, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, need_x0, need_noise
) -> tuple[Tensor, Tensor]:
    return scaling(grad_xt, t_B, (sqrt_abar_S, sqrt_one_minus_abar_S), (need_x0, need_noise))
