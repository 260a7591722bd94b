"""q_sample and its backward by the CUDA kernels in kernels/cuda/q_sample.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl import native
from dmtl._support import Support
from dmtl.kernels._noising import DTYPES, Native, noising, scaling

SUPPORT = Support(devices=("cuda",), dtypes=tuple(DTYPES), available=native.why_no_core_cuda)
_CUDA = Native(module=native.core_cuda, context=lambda x: torch.cuda.current_stream(x.device).cuda_stream)


def q_sample(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
    return noising(
        _CUDA, "q_sample", x0, None, t_B, sqrt_abar_S, None, sqrt_one_minus_abar_S, noise, key_B3, step
    )


def q_sample_backward(
    grad_xt, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, need_x0, need_noise
) -> tuple[Tensor, Tensor]:
    tables = (sqrt_abar_S, sqrt_one_minus_abar_S)
    return scaling(_CUDA, "q_sample_backward", grad_xt, t_B, tables, (need_x0, need_noise))
