"""Compute q_sample and its backward with the CUDA kernels in kernels/cuda/q_sample.cu."""

from dmtl.kernels.native import CUDA
from dmtl.kernels.noising import native_noising

SUPPORT = CUDA.support()

_ops = native_noising(CUDA)
q_sample, q_sample_backward = _ops.q_sample, _ops.q_sample_backward
