"""The fused operators of dmtl: one module each, which is its specification (formula, reference, gradients,
checks)."""

from ._registry import use_backend
from .conv3x3 import conv3x3, fold_1x1, pack_conv3x3
from .noisy_tokens import noisy_tokens
from .posterior_step import posterior_step, posterior_step_
from .q_sample import normal, q_sample
from .upsample_add import upsample_add

__all__ = [
    "conv3x3",
    "fold_1x1",
    "noisy_tokens",
    "normal",
    "pack_conv3x3",
    "posterior_step",
    "posterior_step_",
    "q_sample",
    "upsample_add",
    "use_backend",
]
