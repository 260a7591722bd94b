"""The fused operators of dmtl: one module each, which is its specification (formula, reference, gradients,
checks)."""

from ._registry import use_backend
from .posterior_step import posterior_step
from .q_sample import normal, q_sample

__all__ = ["normal", "posterior_step", "q_sample", "use_backend"]
