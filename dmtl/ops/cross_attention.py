"""Apply cross-attention with its norms, projections and residual (DiffusionMTL, arXiv 2403.15389).

Legend: R rows, N query tokens, M key tokens, C channels, h heads of d = C / h channels each.

    q = LayerNorm_x(x) q_weight^T                       [R, N, C]    (or given: `query`)
    k, v = LayerNorm_y(y) kv_weight^T                   [R, M, C] each, kv_weight = [K; V] stacked
    P = softmax(q k^T / sqrt(d)) over M, for each head  [R, h, N, M]
    a = P v, heads side by side                         [R, N, C]
    out = x + a proj_weight^T + proj_bias               [R, N, C]

Gradients, with e = grad out and da = e proj_weight (per head from dP on):

    d_proj_weight = e^T a, d_proj_bias = sum e
    dv = P^T da;  dP = da v^T;  dS = P (dP - sum(da a));  dq = dS k / sqrt(d);  dk = dS^T q / sqrt(d)
    d_q_weight = dq^T LayerNorm_x(x);  d_x = e + LayerNorm_x'(dq q_weight);  likewise for y with [dk, dv]

With `query` given, dq is its gradient, d_x = e, and norm_x and q_weight have none.
Saved for the backward pass: x, y, q, [k, v], a and the log-sum-exp of the scores; P is computed again.

Numerics: operands of the products, q, k, v and a have x's dtype; sums, scores and all between the products
are float32 (float64 for float64), and so is the log-sum-exp.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import checks
from .arithmetic import wide, wide_dtype
from .registry import Operator, OpSpec, add
from .samples import draws
from .tokens import epsilon, norm_backward, normalised, shaped, summed

# norm_x and q_weight are None if the query is given.
_INPUTS = (
    "Tensor x, Tensor y, Tensor? norm_x_weight, Tensor? norm_x_bias, Tensor norm_y_weight, "
    "Tensor norm_y_bias, Tensor? q_weight, Tensor kv_weight, Tensor proj_weight"
)
# -> out, then what a backward pass needs if `save` (else empty): q (empty where given), kv, a, lse.
_SCHEMA = (
    f"({_INPUTS}, Tensor proj_bias, Tensor? query, int heads, float eps, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# -> gradients of the inputs in their order, of proj_bias and of q. With a given query those of x, norm_x and
# q_weight are empty (d_x is e), without it that of q is.
_BACKWARD_SCHEMA = (
    f"(Tensor grad, {_INPUTS}, Tensor q, Tensor kv, Tensor a, Tensor lse, int heads, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return [R, N, C] as [R, h, N, d], a view."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """Return [R, h, N, d] as [R, N, C]."""
    return x.transpose(1, 2).flatten(2)


def _reference(
    x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight, proj_bias,
    query, heads, eps, save,
):  # fmt: skip
    q = F.linear(normalised(x, norm_x_weight, norm_x_bias, eps), q_weight) if query is None else query
    kv = F.linear(normalised(y, norm_y_weight, norm_y_bias, eps), kv_weight)
    if save:
        a, lse = _core(q, kv, heads)
    else:  # the library's own fused kernels, if the log-sum-exp is not needed
        k, v = (_heads(part, heads) for part in kv.chunk(2, dim=-1))
        a = _joined(F.scaled_dot_product_attention(_heads(q, heads), k, v))
    out = (x + F.linear(a, proj_weight, proj_bias)).contiguous()
    if not save:
        return out, *(x.new_empty(0) for _ in range(3)), x.new_empty(0, dtype=wide_dtype(x.dtype))
    return out, q if query is None else x.new_empty(0), kv, a, lse


def _core(q, kv, heads: int) -> tuple[Tensor, Tensor]:
    """Return a and the log-sum-exp of the scores."""
    k, v = (wide(_heads(part, heads)) for part in kv.chunk(2, dim=-1))
    scores = (wide(_heads(q, heads)) * k.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return _joined(scores.softmax(-1) @ v).to(q.dtype), scores.logsumexp(-1)


def _reference_backward(
    grad, x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight,
    q, kv, a, lse, heads, eps,
):  # fmt: skip
    d_q, d_kv = _core_backward(grad @ proj_weight, q, kv, a, lse, heads)
    rows = grad.flatten(0, 1)
    d_proj = rows.T @ a.flatten(0, 1), summed(grad)
    d_y, *d_norm_y, d_kv_weight = _project_backward(d_kv, y, norm_y_weight, norm_y_bias, kv_weight, eps)
    if q_weight is None:
        d_x, *d_norm_x, d_q_weight = (x.new_empty(0) for _ in range(4))
    else:
        d_x, *d_norm_x, d_q_weight = _project_backward(d_q, x, norm_x_weight, norm_x_bias, q_weight, eps)
        d_x, d_q = grad + d_x, x.new_empty(0)
    found = (d_x, d_y, *d_norm_x, *d_norm_y, d_q_weight, d_kv_weight, *d_proj, d_q)
    return tuple(value.contiguous() for value in found)


def _project_backward(d_out, x, norm_weight, norm_bias, weight, eps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, norm_weight, norm_bias and weight in out = LayerNorm(x) weight^T."""
    d_out, rows = d_out.flatten(0, 1), x.flatten(0, 1)
    d_x, d_norm_weight, d_norm_bias, n = norm_backward(d_out @ weight, rows, norm_weight, norm_bias, eps)
    return d_x.reshape(x.shape), d_norm_weight, d_norm_bias, d_out.T @ n


def _core_backward(d_a, q, kv, a, lse, heads: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of q and of [k, v] from that of a."""
    dtype, scale = q.dtype, (q.shape[-1] // heads) ** -0.5
    q, d_a, a = (wide(_heads(part, heads)) for part in (q, d_a, a))
    k, v = (wide(_heads(part, heads)) for part in kv.chunk(2, dim=-1))
    q = q * scale
    p = (q @ k.transpose(-2, -1) - lse.unsqueeze(-1)).exp()
    d_scores = p * (d_a @ v.transpose(-2, -1) - (d_a * a).sum(-1, keepdim=True))
    d_k, d_v = d_scores.transpose(-2, -1) @ q, p.transpose(-2, -1) @ d_a
    d_kv = torch.cat([_joined(d_k), _joined(d_v)], dim=-1)
    return _joined((d_scores @ k) * scale).to(dtype), d_kv.to(dtype)


def _fake(
    x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight, proj_bias,
    query, heads, eps, save,
):  # fmt: skip
    wide = wide_dtype(x.dtype)
    (rows, tokens, width), answers = x.shape, y.shape[1]
    if not save:
        return x.new_empty(x.shape), *(x.new_empty(0) for _ in range(3)), x.new_empty(0, dtype=wide)
    return (
        x.new_empty(x.shape),
        x.new_empty(0 if query is not None else x.shape),
        x.new_empty(rows, answers, 2 * width),
        x.new_empty(x.shape),
        x.new_empty(rows, heads, tokens, dtype=wide),
    )


def _fake_backward(
    grad, x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight,
    q, kv, a, lse, heads, eps,
):  # fmt: skip
    given, (width,) = q_weight is None, norm_y_weight.shape
    vector, square = [0] if given else [width], [0] if given else [width, width]
    shapes = (
        [0] if given else x.shape, y.shape, vector, vector, [width], [width], square, [2 * width, width],
        [width, width], [width], x.shape if given else [0],
    )  # fmt: skip
    return tuple(x.new_empty(shape) for shape in shapes)


def _kind(x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, *rest) -> tuple:
    """Return what the speed of a call depends on; rows are rounded to powers of two to time few calls."""
    heads, *others = (value for value in rest if isinstance(value, int))
    return (x.shape[0].bit_length(), *x.shape[1:], y.shape[1], heads, q_weight is None, *others)


def _kind_backward(grad, *forward) -> tuple:
    return _kind(*forward)


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        *inputs, proj_bias, query, heads, eps = args
        out, q, kv, a, lse = torch.ops.dmtl.cross_attention(*inputs, proj_bias, query, heads, eps, True)
        ctx.save_for_backward(*inputs, q if query is None else query, kv, a, lse)
        ctx.options = heads, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors  # read once: with checkpointing, each access computes them again
        *found, d_q = torch.ops.dmtl.cross_attention_backward(grad, *saved, *ctx.options)
        if saved[6] is None:  # the query was given: only the residual leads to x
            found = [
                grad if index == 0 else None if index in (2, 3, 6) else d for index, d in enumerate(found)
            ]
            return *found, d_q, None, None
        return *found, None, None, None


def _check(x, y, weights: dict[str, Tensor | None], heads, eps, query) -> None:
    op = "cross_attention"
    for name, value in (("x", x), ("y", y)):
        checks.data(op, name, value)
        if value.dim() != 3 or 0 in value.shape[1:]:
            checks.fail(op, name, "of shape [R, tokens, C] with at least one token", list(value.shape))
    rows, tokens, width = x.shape
    shaped(op, "y", y, x, "x", R=rows, M=y.shape[1], C=width)
    for name, value in weights.items():
        if query is not None and value is None:
            continue
        if name.startswith("norm") or name.endswith("bias"):
            shaped(op, name, value, x, "x", C=width)
        elif name == "kv_weight":
            shaped(op, name, value, x, "x", **{"2C": 2 * width, "C": width})
        else:
            shaped(op, name, value, x, "x", **{"C": width, "C ": width})
    checks.integer(op, "heads", heads)
    if heads < 1 or width % heads:
        checks.fail(op, "heads", f"a divisor of C = {width}", heads)
    if query is not None:
        shaped(op, "query", query, x, "x", R=rows, N=tokens, C=width)
    epsilon(op, eps)


def cross_attention(
    x: Tensor,
    y: Tensor,
    norm_x_weight: Tensor | None,
    norm_x_bias: Tensor | None,
    norm_y_weight: Tensor,
    norm_y_bias: Tensor,
    q_weight: Tensor | None,
    kv_weight: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    heads: int,
    eps: float = 1e-5,
    query: Tensor | None = None,
) -> Tensor:
    """Compute x + proj(attention of LayerNorm(x) to LayerNorm(y)), multi-headed.

    Args:
        x: [R, N, C] float32, bfloat16, float16 (or float64), any strides, N >= 1. All other tensors are of
            its dtype and device.
        y: [R, M, C], M >= 1.
        norm_x_weight: [C].
        norm_x_bias: [C].
        norm_y_weight: [C].
        norm_y_bias: [C].
        proj_bias: [C].
        q_weight: [C, C].
        proj_weight: [C, C].
        kv_weight: [2C, C], the keys' rows first.
        heads: divides C.
        eps: of the LayerNorms.
        query: [R, N, C], LayerNorm_x(x) q_weight^T if the caller has it already; norm_x_* and q_weight are
            then not read (and may be None).

    Returns:
        [R, N, C] of x's dtype, contiguous. Differentiable once, in all tensors.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device, or heads does not fit.
        NotImplementedError: the requested backend cannot serve the call.
    """
    weights = dict(
        norm_x_weight=norm_x_weight, norm_x_bias=norm_x_bias, norm_y_weight=norm_y_weight,
        norm_y_bias=norm_y_bias, q_weight=q_weight, kv_weight=kv_weight, proj_weight=proj_weight,
        proj_bias=proj_bias,
    )  # fmt: skip
    if query is not None:
        weights |= dict(norm_x_weight=None, norm_x_bias=None, q_weight=None)
    _check(x, y, weights, heads, eps, query)
    args = (x, y, *weights.values(), query)
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in args):
        return _CrossAttention.apply(*args, heads, eps)
    return torch.ops.dmtl.cross_attention(*args, heads, eps, False)[0]


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks: one token, N unlike M, given query, slices, no rows."""
    draw = draws(len(size), dtype, device)

    def case(x: Tensor, y: Tensor, heads: int, given: bool = False) -> dict:
        width = x.shape[-1]
        norms = ("norm_x_weight", "norm_x_bias", "norm_y_weight", "norm_y_bias")
        return (
            dict(x=x, y=y)
            | {name: draw(width, scale=0.2) + name.endswith("weight") for name in norms}
            | dict(
                q_weight=draw(width, width, scale=width**-0.5),
                kv_weight=draw(2 * width, width, scale=width**-0.5),
                proj_weight=draw(width, width, scale=width**-0.5),
                proj_bias=draw(width, scale=0.2),
                heads=heads,
            )
            | (dict.fromkeys(("norm_x_weight", "norm_x_bias", "q_weight")) if given else {})
            | (dict(query=draw(*x.shape)) if given else {})
        )

    if size == "large":
        return [case(draw(5, 256, 512), draw(5, 256, 512), 4)]
    if size == "tiny":
        return [
            case(draw(1, 1, 8), draw(1, 2, 8), 1),
            case(draw(0, 2, 8), draw(0, 3, 8), 1),
            case(draw(1, 3, 8), draw(1, 1, 8), 1, given=True),
        ]
    return [
        case(draw(2, 37, 48), draw(2, 19, 48), 2),
        case(draw(4, 5, 64)[::2], draw(4, 140, 64)[1::2, ::2], 1),
        case(draw(3, 16, 23).transpose(1, 2), draw(3, 16, 23).transpose(1, 2), 2, given=True),
    ]


SPEC = add(
    OpSpec(
        name="cross_attention",
        forward=Operator("cross_attention", _SCHEMA, _reference, fake=_fake, kind=_kind),
        backward=Operator(
            "cross_attention_backward", _BACKWARD_SCHEMA, _reference_backward, fake=_fake_backward,
            kind=_kind_backward,
        ),
        function=cross_attention,
        differentiable=(
            "x", "y", "norm_x_weight", "norm_x_bias", "norm_y_weight", "norm_y_bias", "q_weight", "kv_weight",
            "proj_weight", "proj_bias", "query",
        ),
        samples=_samples,
        # d_norm_y_bias is a sum over all tokens of which the keys' share cancels.
        tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3},
    )
)  # fmt: skip
