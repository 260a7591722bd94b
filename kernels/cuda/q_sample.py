"""q_sample and its backward by the CUDA kernels in kernels/cuda/q_sample.cu."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels._native import CUDA
from dmtl.kernels._noising import noising, scaling

SUPPORT = CUDA.support()


def q_sample(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
    return noising(
        CUDA, "q_sample", x0, None, t_B, sqrt_abar_S, None, sqrt_one_minus_abar_S, noise, key_B3, step
    )


def q_sample_backward(
    grad_xt, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, need_x0, need_noise
) -> tuple[Tensor, Tensor]:
    tables = (sqrt_abar_S, sqrt_one_minus_abar_S)
    return scaling(CUDA, "q_sample_backward", grad_xt, t_B, tables, (need_x0, need_noise))
