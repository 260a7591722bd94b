"""The fused operators of dmtl.

Each operator has a module that specifies it: formula, reference, gradients and checks."""

from .batch_norm import batch_norm
from .condition_tokens import condition_tokens, fold_reduction
from .conv3x3 import conv3x3, fold_1x1, pack_conv3x3
from .cross_attention import cross_attention
from .decode_map import decode_map
from .depthwise_conv import depthwise_conv
from .inverted_residual import inverted_residual, pack_inverted_residual
from .map_loss import map_loss
from .noisy_tokens import noisy_tokens
from .pointwise_conv import pointwise_conv
from .posterior_step import posterior_step, posterior_step_
from .q_sample import normal, q_sample
from .references import references
from .registry import use_backend
from .token_mlp import token_mlp
from .upsample_add import upsample_add

__all__ = [
    "batch_norm",
    "condition_tokens",
    "conv3x3",
    "cross_attention",
    "decode_map",
    "depthwise_conv",
    "fold_1x1",
    "fold_reduction",
    "inverted_residual",
    "map_loss",
    "noisy_tokens",
    "normal",
    "pack_conv3x3",
    "pack_inverted_residual",
    "pointwise_conv",
    "posterior_step",
    "posterior_step_",
    "q_sample",
    "references",
    "token_mlp",
    "upsample_add",
    "use_backend",
]
