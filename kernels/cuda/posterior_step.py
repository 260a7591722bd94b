"""Compute posterior_step and its backward with the CUDA kernels in kernels/cuda/posterior_step.cu."""

from dmtl.kernels.native import CUDA
from dmtl.kernels.noising import native_noising

SUPPORT = CUDA.support()

_ops = native_noising(CUDA)
posterior_step, posterior_step_ = _ops.posterior_step, _ops.posterior_step_
posterior_step_backward = _ops.posterior_step_backward
