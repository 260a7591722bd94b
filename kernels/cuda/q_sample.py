"""q_sample and its backward by the CUDA kernels in kernels/cuda/q_sample.cu."""

from dmtl.kernels.native import CUDA
from dmtl.kernels.noising import NativeNoising

SUPPORT = CUDA.support()

_ops = NativeNoising(CUDA)
q_sample, q_sample_backward = _ops.q_sample, _ops.q_sample_backward
