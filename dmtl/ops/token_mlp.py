"""Apply the denoiser's MLP to tokens (DiffusionMTL, arXiv 2403.15389).

Legend: x [..., C] tokens, H hidden channels.

    n = LayerNorm(x) = (x - mean) / sqrt(var + eps) norm_weight + norm_bias          [..., C]
    h = n fc1_weight^T + fc1_bias,  g = GELU(h) = h Phi(h)                           [..., H]
    out = x + g fc2_weight^T + fc2_bias                                              [..., C]

Gradients, with d = grad out:

    d_fc2_weight = d^T g,    d_fc2_bias = sum d,    d_h = (d fc2_weight) (Phi(h) + h phi(h))
    d_fc1_weight = d_h^T n,  d_fc1_bias = sum d_h,  d_x = d + LayerNorm'(d_h fc1_weight)

Saved for the backward pass: x and h; the rest is computed again.

Numerics: operands of the products and h have x's dtype; sums and all between the products are float32
(float64 for float64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .autograd import recorded
from .registry import Operator, OpSpec, add
from .samples import draws
from .tokens import epsilon, norm_backward, normalised, shaped, summed

_WEIGHTS = "Tensor norm_weight, Tensor norm_bias, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight"
# save: whether h is wanted for a backward pass; otherwise it comes back empty.
_SCHEMA = f"(Tensor x, {_WEIGHTS}, Tensor fc2_bias, float eps, bool save) -> (Tensor out, Tensor h)"
_BACKWARD_SCHEMA = (
    f"(Tensor grad, Tensor x, {_WEIGHTS}, Tensor h, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _reference(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, save):
    h = F.linear(normalised(x, norm_weight, norm_bias, eps), fc1_weight, fc1_bias)
    out = x + F.linear(F.gelu(h), fc2_weight, fc2_bias)
    return out.contiguous(), h if save else x.new_empty(0)


def _reference_backward(grad, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, h, eps):
    shape = x.shape
    grad, x, h = (value.reshape(-1, value.shape[-1]) for value in (grad, x, h))
    d_h = torch.ops.aten.gelu_backward(grad @ fc2_weight, h)  # times Phi(h) + h phi(h)
    d_x, d_norm_weight, d_norm_bias, n = norm_backward(d_h @ fc1_weight, x, norm_weight, norm_bias, eps)
    d_fc1, d_fc2 = (d_h.T @ n, summed(d_h)), (grad.T @ F.gelu(h), summed(grad))
    return (grad + d_x).reshape(shape), d_norm_weight, d_norm_bias, *d_fc1, *d_fc2


def _fake(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, save):
    hidden = (*x.shape[:-1], fc1_weight.shape[0]) if save else (0,)
    return x.new_empty(x.shape), x.new_empty(hidden)


def _fake_backward(grad, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, h, eps):
    width, hidden = x.shape[-1], fc1_weight.shape[0]
    shapes = (x.shape, [width], [width], [hidden, width], [hidden], [width, hidden], [width])
    return tuple(x.new_empty(shape) for shape in shapes)


def _kind(x, norm_weight, norm_bias, fc1_weight, *rest) -> tuple:
    """Return what a call's speed depends on; ragged batches have few kinds of tokens."""
    save = rest[-1] is True
    return ((x.numel() // x.shape[-1]).bit_length(), *fc1_weight.shape, save)


def _kind_backward(grad, *forward) -> tuple:
    return _kind(*forward)


def token_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Compute x + fc2(GELU(fc1(LayerNorm(x)))), GELU with the error function.

    Args:
        x: [..., C] float32, bfloat16, float16 (or float64), any strides. All other tensors are of its dtype.
        norm_weight: [C].
        norm_bias: [C].
        fc2_bias: [C].
        fc1_weight: [H, C].
        fc1_bias: [H].
        fc2_weight: [C, H].
        eps: of the LayerNorm.

    Returns:
        The shape and dtype of x, contiguous. Differentiable once, in all tensors.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "token_mlp"
    checks.data(op, "x", x)
    width = x.shape[-1]
    if width < 1:
        checks.fail(op, "x", "of shape [..., C] with C >= 1", list(x.shape))
    checks.tensor(op, "fc1_weight", fc1_weight)
    hidden = fc1_weight.shape[0] if fc1_weight.dim() else 0
    if hidden < 1:
        checks.fail(op, "fc1_weight", "of shape [H, C] with H >= 1", list(fc1_weight.shape))
    shaped(op, "norm_weight", norm_weight, x, "x", C=width)
    shaped(op, "norm_bias", norm_bias, x, "x", C=width)
    shaped(op, "fc1_weight", fc1_weight, x, "x", H=hidden, C=width)
    shaped(op, "fc1_bias", fc1_bias, x, "x", H=hidden)
    shaped(op, "fc2_weight", fc2_weight, x, "x", C=width, H=hidden)
    shaped(op, "fc2_bias", fc2_bias, x, "x", C=width)
    epsilon(op, eps)
    return _call(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks.

    Single tokens, sizes that are not multiples of a tile, slices.
    """
    draw = draws(len(size), dtype, device)

    def case(x: Tensor, hidden: int) -> dict:
        width = x.shape[-1]
        return dict(
            x=x,
            norm_weight=1 + draw(width, scale=0.2),
            norm_bias=draw(width, scale=0.2),
            fc1_weight=draw(hidden, width, scale=width**-0.5),
            fc1_bias=draw(hidden, scale=0.2),
            fc2_weight=draw(width, hidden, scale=hidden**-0.5),
            fc2_bias=draw(width, scale=0.2),
        )

    if size == "large":
        return [case(draw(5, 256, 512), 2048)]
    if size == "tiny":
        return [case(draw(1, 1, 8), 8), case(draw(0, 3, 8), 16), case(draw(8), 8)]
    return [
        case(draw(3, 37, 24), 40),
        case(draw(5, 34, 48)[::2, 1::3], 96),
        case(draw(2, 40, 7).transpose(1, 2), 56),
    ]


SPEC = add(
    OpSpec(
        name="token_mlp",
        forward=Operator("token_mlp", _SCHEMA, _reference, fake=_fake, kind=_kind),
        backward=Operator(
            "token_mlp_backward", _BACKWARD_SCHEMA, _reference_backward, fake=_fake_backward,
            kind=_kind_backward,
        ),
        function=token_mlp,
        differentiable=(
            "x", "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"
        ),
        samples=_samples,
    )
)  # fmt: skip
_call = recorded(SPEC)
