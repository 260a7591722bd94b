"""Parts shared by the operators on tokens: argument checks and LayerNorm with its closed-form gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arithmetic import wide_dtype


def shaped(op: str, argument: str, value: object, model: Tensor, model_name: str, **sizes: int) -> None:
    """Require a tensor of model's dtype and device, of exactly the named sizes (in their order)."""
    value = checks.tensor(op, argument, value)
    checks.same_dtype(op, argument, value, model, model_name)
    if tuple(value.shape) != tuple(sizes.values()):
        contract = f"of shape [{', '.join(sizes)}] = {list(sizes.values())}"
        checks.fail(op, argument, contract, list(value.shape))
    checks.on_device(op, argument, value, model.device)


def epsilon(op: str, eps: object) -> None:
    """Require a positive float."""
    if not isinstance(eps, float):
        checks.fail(op, "eps", "a float", type(eps).__name__, TypeError)
    if not eps > 0:
        checks.fail(op, "eps", "positive", eps)


def normalised(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """Apply LayerNorm over the last dimension."""
    return F.layer_norm(x, weight_C.shape, weight_C, bias_C, eps)


def summed(x: Tensor) -> Tensor:
    """Sum over all dimensions but the last."""
    return x.flatten(0, -2).sum(0, dtype=wide_dtype(x.dtype)).to(x.dtype)


def norm_backward(
    grad: Tensor, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (d_x, d_weight, d_bias, LayerNorm(x)) for grad, x [rows, C].

    With z = (x - mean) / std and g = grad weight:

        d_x = (g - mean(g) - z mean(g z)) / std,    d_weight = sum grad z,    d_bias = sum grad
    """
    shape = list(weight_C.shape)
    n, mean, rstd = torch.native_layer_norm(x, shape, weight_C, bias_C, eps)
    wanted = [True, True, True]
    found = torch.ops.aten.native_layer_norm_backward(grad, x, shape, mean, rstd, weight_C, bias_C, wanted)
    return *found, n
