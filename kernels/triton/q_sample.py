"""Compute q_sample and its backward in Triton."""

from dmtl.kernels.triton._noising import OPS, SUPPORT

__all__ = ["SUPPORT", "q_sample", "q_sample_backward"]

q_sample, q_sample_backward = OPS.q_sample, OPS.q_sample_backward
