"""Compute cross_attention and its backward in Triton.

Forward, there are three launches for all rows of all tasks: both LayerNorms and projections; the attention
core; the output projection with bias and residual. Backward, the core takes two kernels (d_q; d_k and d_v)
and each LayerNorm one, which also recomputes the normalised tokens. torch computes the plain products between
them.

There is no CUDA kernel: on a GPU, the automatic choice compares these kernels with the reference (torch's
products and F.scaled_dot_product_attention, whose backend torch chooses) once for each call signature.

Floor at 5 x 256 tokens, C = 512: 3.4 GFLOP, 4.3 us at 780 TFLOP/s; at this size the launches count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.tokens import why_not_sizes
from dmtl.kernels.triton import _attention, _linear
from dmtl.kernels.triton._attention import attention, attention_backward
from dmtl.kernels.triton._launch import support
from dmtl.kernels.triton._linear import linear, norm_backward, norm_pair
from dmtl.ops.cross_attention import SPEC

_MAX_HEAD = 128


def _shapes(x, *rest) -> list[str]:
    width, heads = x.shape[2], next(value for value in rest if isinstance(value, int))
    d = width // heads
    too_wide = [f"heads of {d} channels are wider than {_MAX_HEAD}"] if d > _MAX_HEAD else []
    return why_not_sizes(C=width) + (too_wide or why_not_sizes(head=d))


SUPPORT = support(_shapes, lambda grad, *forward: _shapes(*forward), products=True)
CONFIGS = [*_linear.CONFIGS, *_attention.CONFIGS]


def _flat(x: Tensor) -> Tensor:
    """Return x [R, N, C] as dense [R N, C]."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def cross_attention(
    x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight, proj_bias,
    query, heads, eps, save,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (r, n, c), m = x.shape, y.shape[1]
    if x.numel() == 0:
        q, kv, a, lse = x.new_empty(x.shape), x.new_empty(r, m, 2 * c), x.new_empty(x.shape), None
        out = x.new_empty(x.shape)
    else:
        flat_x, flat_y = _flat(x), _flat(y)
        norm_y = norm_y_weight.contiguous(), norm_y_bias.contiguous()
        if query is not None:
            q, (kv, _) = _flat(query), linear(flat_y, kv_weight.contiguous(), norm=(*norm_y, eps))
        else:
            norm_x = norm_x_weight.contiguous(), norm_x_bias.contiguous()
            q, kv = norm_pair(
                flat_x, flat_y, norm_x, norm_y, q_weight.contiguous(), kv_weight.contiguous(), eps
            )
        q, kv = q.reshape(r, n, c), kv.reshape(r, m, 2 * c)
        a, lse = attention(q, kv, heads, save)
        out, _ = linear(_flat(a), proj_weight.contiguous(), bias=proj_bias.contiguous(), residual=flat_x)
        out = out.reshape(x.shape)
    if lse is None:
        lse = x.new_empty((r, heads, n) if save else 0, dtype=torch.float32)
    if not save:
        return out, *(x.new_empty(0) for _ in range(3)), lse
    return out, q if query is None else x.new_empty(0), kv, a, lse


def cross_attention_backward(*args) -> tuple[Tensor, ...]:
    (
        grad, x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight,
        q, kv, a, lse, heads, eps,
    ) = args  # fmt: skip
    if x.numel() == 0:
        return tuple(gradient.zero_() for gradient in SPEC.backward.fake(*args))
    flat_grad, flat_a = _flat(grad), _flat(a)
    d_a = (flat_grad @ proj_weight).reshape(x.shape)
    d_q, d_kv = attention_backward(
        d_a, q.contiguous(), kv.contiguous(), a.contiguous(), lse.contiguous(), heads
    )
    d_proj = flat_grad.T @ flat_a, flat_grad.sum(0)
    d_y, *d_norm_y, d_kv_weight = _normed(d_kv, y, norm_y_weight, norm_y_bias, kv_weight, eps, None)
    if q_weight is None:
        d_x, d_norm_x, d_q_weight = x.new_empty(0), (x.new_empty(0), x.new_empty(0)), x.new_empty(0)
    else:
        d_x, *d_norm_x, d_q_weight = _normed(d_q, x, norm_x_weight, norm_x_bias, q_weight, eps, flat_grad)
        d_q = x.new_empty(0)
    return d_x, d_y, *d_norm_x, *d_norm_y, d_q_weight, d_kv_weight, *d_proj, d_q


def _normed(d_out, x, norm_weight, norm_bias, weight, eps, residual) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x (+ residual), norm_weight, norm_bias and weight in out = LayerNorm(x)
    weight^T."""
    d_out = _flat(d_out)
    d_x, d_norm_weight, d_norm_bias, n = norm_backward(
        d_out @ weight, _flat(x), norm_weight.contiguous(), norm_bias.contiguous(), eps, residual
    )
    return d_x.reshape(x.shape), d_norm_weight, d_norm_bias, d_out.T @ n
