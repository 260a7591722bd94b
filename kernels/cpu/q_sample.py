"""q_sample and its backward by the C++ kernels in csrc/cpu/q_sample.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl import native
from dmtl._support import Support
from dmtl.kernels._noising import DTYPES, Native, noising, scaling

SUPPORT = Support(devices=("cpu",), dtypes=tuple(DTYPES), available=native.why_no_core)
_CPU = Native(module=native.core, context=lambda x: torch.get_num_threads())


def q_sample(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
    return noising(
        _CPU, "q_sample", x0, None, t_B, sqrt_abar_S, None, sqrt_one_minus_abar_S, noise, key_B3, step
    )


def q_sample_backward(
    grad_xt, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, need_x0, need_noise
) -> tuple[Tensor, Tensor]:
    tables = (sqrt_abar_S, sqrt_one_minus_abar_S)
    return scaling(_CPU, "q_sample_backward", grad_xt, t_B, tables, (need_x0, need_noise))
