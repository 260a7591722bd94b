"""token_mlp and its backward by the C++ kernels in csrc/cpu/token_mlp.cpp. Their arithmetic is float32 for
all storage types; what is left to the library: see `_tokens`."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.kernels.tokens import dense, why_not_bf16, why_not_sizes
from dmtl.runtime.memory import empty


def _shapes(x, norm_weight, norm_bias, fc1_weight, *rest) -> list[str]:
    return why_not_sizes(C=x.shape[-1], H=fc1_weight.shape[0]) + why_not_bf16(x)


def _backward_shapes(grad, *forward) -> list[str]:
    return _shapes(*forward)


SUPPORT = CPU.support(shapes=_shapes, backward_shapes=_backward_shapes)


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
        sizes = {"rows": x.numel() // width, "width": width, "hidden": hidden, "eps": eps}
        CPU.call("token_mlp", x, out=out, h=h if save else None, **tensors, **sizes)
    return out, h


def token_mlp_backward(
    grad, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, h, eps
) -> tuple[Tensor, ...]:
    hidden, width = fc1_weight.shape
    make = torch.empty if x.numel() else torch.zeros
    gradients = {
        "d_x": x.shape, "d_norm_weight": [width], "d_norm_bias": [width], "d_fc1_weight": [hidden, width],
        "d_fc1_bias": [hidden], "d_fc2_weight": [width, hidden], "d_fc2_bias": [width],
    }  # fmt: skip
    gradients = {name: make(shape, dtype=x.dtype) for name, shape in gradients.items()}
    if x.numel():
        tensors = dense(
            grad=grad, x=x, norm_weight=norm_weight, norm_bias=norm_bias, fc1_weight=fc1_weight,
            fc2_weight=fc2_weight, h=h,
        )  # fmt: skip
        sizes = {"rows": x.numel() // width, "width": width, "hidden": hidden, "eps": eps}
        CPU.call("token_mlp_backward", x, **gradients, **tensors, **sizes)
    return tuple(gradients.values())
