"""posterior_step, in place or not, and its backward in Triton."""

from dmtl.kernels.triton._noising import SUPPORT, TritonNoising

__all__ = ["SUPPORT", "posterior_step", "posterior_step_", "posterior_step_backward"]

_ops = TritonNoising()
posterior_step, posterior_step_ = _ops.posterior_step, _ops.posterior_step_
posterior_step_backward = _ops.posterior_step_backward
