"""posterior_step and its backward by the CUDA kernels in kernels/cuda/posterior_step.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl import native
from dmtl._support import Support
from dmtl.kernels._noising import DTYPES, Native, noising, scaling

SUPPORT = Support(devices=("cuda",), dtypes=tuple(DTYPES), available=native.why_no_core_cuda)
_CUDA = Native(module=native.core_cuda, context=lambda x: torch.cuda.current_stream(x.device).cuda_stream)


def posterior_step(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> Tensor:
    return noising(_CUDA, "posterior_step", x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)


def posterior_step_backward(
    grad_prev, t_B, coef1_S, coef2_S, sigma_S, need_x0_hat, need_x_t, need_noise
) -> tuple[Tensor, Tensor, Tensor]:
    needed = (need_x0_hat, need_x_t, need_noise)
    return scaling(_CUDA, "posterior_step_backward", grad_prev, t_B, (coef1_S, coef2_S, sigma_S), needed)
