"""Compute cross_attention and its backward with the C++ kernels in csrc/cpu/cross_attention.cpp.

Sums are float32; in bfloat16, the factors of forward products are bfloat16. `dmtl.kernels.tokens` says which
calls are left to torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.kernels.tokens import dense, why_not_bf16, why_not_sizes
from dmtl.ops.cross_attention import SPEC
from dmtl.runtime.memory import empty


def _shapes(x, *rest) -> list[str]:
    return why_not_sizes(C=x.shape[2]) + why_not_bf16(x)


SUPPORT = CPU.support(shapes=_shapes, backward_shapes=lambda grad, *forward: _shapes(*forward))


def _sizes(x: Tensor, y: Tensor, heads: int, eps: float) -> dict[str, int | float]:
    rows, n, width = x.shape
    return {"rows": rows, "n": n, "m": y.shape[1], "width": width, "heads": heads, "eps": eps}


def cross_attention(
    x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight, proj_bias,
    query, heads, eps, save,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (rows, n, width), m, nothing = x.shape, y.shape[1], (0,)
    out = empty(x.shape, x.dtype)
    q = x.new_empty(x.shape if save and query is None else nothing)
    kv = x.new_empty((rows, m, 2 * width) if save else nothing)
    a = x.new_empty(x.shape if save else nothing)
    lse = x.new_empty((rows, heads, n) if save else nothing, dtype=torch.float32)
    if rows:
        tensors = dense(
            x=x, y=y, query=query, norm_x_weight=norm_x_weight, norm_x_bias=norm_x_bias,
            norm_y_weight=norm_y_weight, norm_y_bias=norm_y_bias, q_weight=q_weight, kv_weight=kv_weight,
            proj_weight=proj_weight, proj_bias=proj_bias,
        )  # fmt: skip
        saved = {"q": q, "kv": kv, "a": a, "lse": lse}
        saved = {name: value if value.numel() else None for name, value in saved.items()}
        CPU.call("cross_attention", x, out=out, **saved, **tensors, **_sizes(x, y, heads, eps))
    return out, q, kv, a, lse


def cross_attention_backward(*args) -> tuple[Tensor, ...]:
    (
        grad, x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight,
        q, kv, a, lse, heads, eps,
    ) = args  # fmt: skip
    gradients = SPEC.backward.fake(*args)
    if not len(x):
        return tuple(gradient.zero_() for gradient in gradients)
    tensors = dense(
        grad=grad, x=x, y=y, norm_x_weight=norm_x_weight, norm_x_bias=norm_x_bias,
        norm_y_weight=norm_y_weight, norm_y_bias=norm_y_bias, q_weight=q_weight, kv_weight=kv_weight,
        proj_weight=proj_weight, q=q, kv=kv, a=a, lse=lse,
    )  # fmt: skip
    names = [f"d_{name}" for name in (*SPEC.differentiable[:-1], "q")]
    tensors |= {name: value if value.numel() else None for name, value in zip(names, gradients, strict=True)}
    CPU.call("cross_attention_backward", x, **tensors, **_sizes(x, y, heads, eps))
    return gradients
