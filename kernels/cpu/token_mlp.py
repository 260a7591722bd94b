"""Compute token_mlp and its backward with the C++ kernels in csrc/cpu/token_mlp.cpp.

Sums are float32; in bfloat16, the factors of forward products are bfloat16. `dmtl.kernels.tokens` says which
calls are left to torch.
"""

from __future__ import annotations

from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.kernels.tokens import dense, why_not_bf16, why_not_sizes
from dmtl.ops.token_mlp import SPEC
from dmtl.runtime.memory import empty


def _shapes(x, norm_weight, norm_bias, fc1_weight, *rest) -> list[str]:
    return why_not_sizes(C=x.shape[-1], H=fc1_weight.shape[0]) + why_not_bf16(x)


SUPPORT = CPU.support(shapes=_shapes, backward_shapes=lambda grad, *forward: _shapes(*forward))


def token_mlp(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, save
) -> tuple[Tensor, Tensor]:
    hidden, width = fc1_weight.shape
    out, h = empty(x.shape, x.dtype), x.new_empty((*x.shape[:-1], hidden) if save else 0)
    if x.numel():
        tensors = dense(
            x=x, norm_weight=norm_weight, norm_bias=norm_bias, fc1_weight=fc1_weight, fc1_bias=fc1_bias,
            fc2_weight=fc2_weight, fc2_bias=fc2_bias,
        )  # fmt: skip
        sizes = dict(rows=x.numel() // width, width=width, hidden=hidden, eps=eps)
        CPU.call("token_mlp", x, out=out, h=h if save else None, **tensors, **sizes)
    return out, h


def token_mlp_backward(*args) -> tuple[Tensor, ...]:
    grad, x, norm_weight, norm_bias, fc1_weight, _, fc2_weight, h, eps = args
    gradients = SPEC.backward.fake(*args)
    if not x.numel():
        return tuple(gradient.zero_() for gradient in gradients)
    tensors = dense(
        grad=grad, x=x, norm_weight=norm_weight, norm_bias=norm_bias, fc1_weight=fc1_weight,
        fc2_weight=fc2_weight, h=h,
    )  # fmt: skip
    tensors |= {f"d_{name}": value for name, value in zip(SPEC.differentiable, gradients, strict=True)}
    hidden, width = fc1_weight.shape
    CPU.call("token_mlp_backward", x, **tensors, rows=x.numel() // width, width=width, hidden=hidden, eps=eps)
    return gradients
