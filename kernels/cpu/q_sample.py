"""q_sample and its backward by the C++ kernels in csrc/cpu/q_sample.cpp."""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels._native import CPU
from dmtl.kernels._noising import noising, scaling

SUPPORT = CPU.support()


def q_sample(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
    return noising(
        CPU, "q_sample", x0, None, t_B, sqrt_abar_S, None, sqrt_one_minus_abar_S, noise, key_B3, step
    )


def q_sample_backward(
    grad_xt, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, need_x0, need_noise
) -> tuple[Tensor, Tensor]:
    tables = (sqrt_abar_S, sqrt_one_minus_abar_S)
    return scaling(CPU, "q_sample_backward", grad_xt, t_B, tables, (need_x0, need_noise))
