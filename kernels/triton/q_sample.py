"""q_sample and its backward in Triton."""

from dmtl.kernels.triton._noising import SUPPORT, TritonNoising

__all__ = ["SUPPORT", "q_sample", "q_sample_backward"]

_ops = TritonNoising()
q_sample, q_sample_backward = _ops.q_sample, _ops.q_sample_backward
