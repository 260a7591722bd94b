"""Compute token_mlp and its backward in Triton.

Forward: LayerNorm + fc1 + bias + GELU in one kernel, fc2 + bias + residual in another. Backward: d_h and
GELU(h) in one product kernel, LayerNorm's backward in another. torch computes the plain products between them
(data and weight gradients), which it does best.

There is no CUDA kernel: on a GPU, the automatic choice compares these kernels with the reference (torch's
products) once for each call signature.

Floor at 5 x 256 tokens, C = 512, H = 2048: 5.4 GFLOP, 7 us at 780 TFLOP/s; two launches.
"""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels.tokens import why_not_sizes
from dmtl.kernels.triton import _linear
from dmtl.kernels.triton._launch import support
from dmtl.kernels.triton._linear import gelu_backward, linear, norm_backward
from dmtl.ops.token_mlp import SPEC


def _shapes(x, norm_weight, norm_bias, fc1_weight, *rest) -> list[str]:
    return why_not_sizes(C=x.shape[-1], H=fc1_weight.shape[0])


SUPPORT = support(_shapes, lambda grad, *forward: _shapes(*forward), products=True)
CONFIGS = _linear.CONFIGS


def token_mlp(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, save
) -> tuple[Tensor, Tensor]:
    hidden = (*x.shape[:-1], fc1_weight.shape[0])
    if x.numel() == 0:
        return x.new_empty(x.shape), x.new_empty(hidden if save else 0)
    shape, x = x.shape, x.reshape(-1, x.shape[-1]).contiguous()
    norm = norm_weight.contiguous(), norm_bias.contiguous(), eps
    g, h = linear(x, fc1_weight.contiguous(), bias=fc1_bias.contiguous(), norm=norm, gelu=True, keep=save)
    out, _ = linear(g, fc2_weight.contiguous(), bias=fc2_bias.contiguous(), residual=x)
    return out.reshape(shape), h.reshape(hidden) if save else x.new_empty(0)


def token_mlp_backward(*args) -> tuple[Tensor, ...]:
    grad, x, norm_weight, norm_bias, fc1_weight, _, fc2_weight, h, eps = args
    if x.numel() == 0:
        return tuple(gradient.zero_() for gradient in SPEC.backward.fake(*args))
    shape = x.shape
    x, grad = (value.reshape(-1, shape[-1]).contiguous() for value in (x, grad))
    d_h, g = gelu_backward(grad, fc2_weight.contiguous(), h.reshape(-1, h.shape[-1]).contiguous())
    d_x, d_norm_weight, d_norm_bias, n = norm_backward(
        d_h @ fc1_weight, x, norm_weight.contiguous(), norm_bias.contiguous(), eps, grad
    )
    d_fc1, d_fc2 = (d_h.T @ n, d_h.sum(0)), (grad.T @ g, grad.sum(0))
    return d_x.reshape(shape), d_norm_weight, d_norm_bias, *d_fc1, *d_fc2
