"""Compute posterior_step, in place or not, and its backward in Triton."""

from dmtl.kernels.triton._noising import OPS, SUPPORT

__all__ = ["SUPPORT", "posterior_step", "posterior_step_", "posterior_step_backward"]

posterior_step, posterior_step_ = OPS.posterior_step, OPS.posterior_step_
posterior_step_backward = OPS.posterior_step_backward
