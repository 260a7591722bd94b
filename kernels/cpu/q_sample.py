"""Compute q_sample and its backward with the C++ kernels in csrc/cpu/q_sample.cpp."""

from dmtl.kernels.native import CPU
from dmtl.kernels.noising import native_noising

SUPPORT = CPU.support()

_ops = native_noising(CPU)
q_sample, q_sample_backward = _ops.q_sample, _ops.q_sample_backward
