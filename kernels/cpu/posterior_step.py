"""Compute posterior_step and its backward with the C++ kernels in csrc/cpu/posterior_step.cpp."""

from dmtl.kernels.native import CPU
from dmtl.kernels.noising import native_noising

SUPPORT = CPU.support()

_ops = native_noising(CPU)
posterior_step, posterior_step_ = _ops.posterior_step, _ops.posterior_step_
posterior_step_backward = _ops.posterior_step_backward
