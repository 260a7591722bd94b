"""Products of tokens with weights in Triton, fused with the operations around them; and LayerNorm's backward
pass.

A LayerNorm may come before a product; bias, GELU, its derivative and a residual may come after it. All
matrices are row-major and dense: a [rows, k], weight [n, k] as in torch's Linear (or [k, n]), out [rows, n].
The operands of a product have the storage type; sums and everything else between load and store are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.triton._launch import POINTERS, compilation

# Tiles for 16-bit products: SMALL if large ones would leave multiprocessors idle; TALL if GELU's derivative
# needs the registers. float32 cannot use tensor cores.
SMALL = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}
LARGE = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
TALL = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
SINGLE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4, "num_stages": 3}
CONFIGS = [SMALL, LARGE, TALL, SINGLE]
_PROCESSORS = 132


def config(rows: int, n: int, dtype: torch.dtype, large: dict = LARGE) -> dict:
    """Return the launch configuration of a product with [rows, n] results."""
    if dtype == torch.float32:
        return SINGLE
    tiles = triton.cdiv(rows, large["BLOCK_M"]) * triton.cdiv(n, large["BLOCK_N"])
    return large if tiles >= _PROCESSORS else SMALL


@triton.jit
def gelu_cdf(h):
    """Return Phi(h), the standard normal distribution function."""
    return 0.5 + 0.5 * tl.erf(h * 0.7071067811865476)


@triton.jit
def _statistics(a_ptr, row, inside, k, eps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return mean and 1 / std of each row. Chan's update by blocks needs to read the row only once."""
    mean = tl.zeros((BLOCK_M,), tl.float32)
    spread = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, k, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        there = inside[:, None] & (column < k)[None, :]
        a = tl.load(a_ptr + row[:, None] * k + column[None, :], mask=there, other=0.0).to(tl.float32)
        count = tl.minimum(k - start, BLOCK_K).to(tl.float32)
        block_mean = tl.sum(a, 1) / count
        centred = tl.where(there, a - block_mean[:, None], 0.0)
        apart = block_mean - mean
        seen = start + count
        mean += apart * (count / seen)
        spread += tl.sum(centred * centred, 1) + apart * apart * (start * count / seen)
    return mean, tl.rsqrt(spread / k + eps)


@triton.jit
def _product(
    a_ptr, weight_ptr, norm_weight_ptr, norm_bias_ptr, row, inside, column, n, k, eps,
    NORM: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the [BLOCK_M, BLOCK_N] tile of LayerNorm(a) weight^T (or of a weight^T) in float32."""
    if NORM:
        mean, rstd = _statistics(a_ptr, row, inside, k, eps, BLOCK_M, BLOCK_K)
    out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        left = at < k
        a = tl.load(a_ptr + row[:, None] * k + at[None, :], mask=inside[:, None] & left[None, :], other=0.0)
        if NORM:
            scale = tl.load(norm_weight_ptr + at, mask=left, other=0.0).to(tl.float32)
            shift = tl.load(norm_bias_ptr + at, mask=left, other=0.0).to(tl.float32)
            z = (a.to(tl.float32) - mean[:, None]) * rstd[:, None]
            a = (z * scale[None, :] + shift[None, :]).to(a_ptr.dtype.element_ty)
        there = left[:, None] & (column < n)[None, :]
        if TRANSPOSED:
            w = tl.load(weight_ptr + at[:, None] * n + column[None, :], mask=there, other=0.0)
        else:
            w = tl.load(weight_ptr + column[None, :] * k + at[:, None], mask=there, other=0.0)
        out = tl.dot(a, w, out, input_precision="ieee")
    return out


@triton.jit
def _linear_kernel(
    out_ptr, aux_ptr, a_ptr, weight_ptr, norm_weight_ptr, norm_bias_ptr, bias_ptr, residual_ptr, h_ptr,
    rows, n, k, eps,
    NORM: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, AUX: tl.constexpr,
    RESIDUAL: tl.constexpr, DERIVATIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute out = [GELU](a weight^T + bias) + residual, and aux = a weight^T + bias.

    DERIVATIVE: out = (a weight) GELU'(h) and aux = GELU(h).
    """
    tiles = tl.cdiv(n, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    value = _product(
        a_ptr, weight_ptr, norm_weight_ptr, norm_bias_ptr, row, inside, column, n, k, eps,
        NORM, TRANSPOSED, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    there = inside[:, None] & (column < n)[None, :]
    at = row[:, None] * n + column[None, :]
    if BIAS:
        value += tl.load(bias_ptr + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    if GELU:
        if AUX:
            tl.store(aux_ptr + at, value.to(aux_ptr.dtype.element_ty), mask=there)
        value = value * gelu_cdf(value)
    if DERIVATIVE:
        h = tl.load(h_ptr + at, mask=there, other=0.0).to(tl.float32)
        cdf = gelu_cdf(h)
        value *= cdf + h * tl.exp(-0.5 * h * h) * 0.3989422804014327
        tl.store(aux_ptr + at, (h * cdf).to(aux_ptr.dtype.element_ty), mask=there)
    if RESIDUAL:
        value += tl.load(residual_ptr + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _norm_pair_kernel(
    q_ptr, kv_ptr, x_ptr, y_ptr, x_weight_ptr, x_bias_ptr, y_weight_ptr, y_bias_ptr, q_weight_ptr,
    kv_weight_ptr, x_rows, y_rows, q_n, kv_n, k, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute q = LayerNorm(x) q_weight^T and kv = LayerNorm(y) kv_weight^T; the tiles of kv come after those
    of q."""
    q_tiles = tl.cdiv(q_n, BLOCK_N) * tl.cdiv(x_rows, BLOCK_M)
    tile = tl.program_id(0)
    if tile < q_tiles:
        out_ptr, a_ptr, weight_ptr = q_ptr, x_ptr, q_weight_ptr
        scale_ptr, shift_ptr = x_weight_ptr, x_bias_ptr
        rows, n = x_rows, q_n
    else:
        out_ptr, a_ptr, weight_ptr = kv_ptr, y_ptr, kv_weight_ptr
        scale_ptr, shift_ptr = y_weight_ptr, y_bias_ptr
        rows, n = y_rows, kv_n
        tile -= q_tiles
    tiles = tl.cdiv(n, BLOCK_N)
    row = (tile // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tile % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    value = _product(
        a_ptr, weight_ptr, scale_ptr, shift_ptr, row, inside, column, n, k, eps,
        True, False, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at = out_ptr + row[:, None] * n + column[None, :]
    tl.store(at, value.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (column < n)[None, :])


def norm_pair(
    x: Tensor, y: Tensor, norm_x: tuple[Tensor, Tensor], norm_y: tuple[Tensor, Tensor], q_weight: Tensor,
    kv_weight: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return LayerNorm(x) q_weight^T and LayerNorm(y) kv_weight^T for x [rows, k], y [other rows, k], in one
    launch."""
    (q_n, k), kv_n = q_weight.shape, kv_weight.shape[0]
    q, kv = x.new_empty(x.shape[0], q_n), y.new_empty(y.shape[0], kv_n)
    chosen = config(x.shape[0] + y.shape[0], kv_n, x.dtype)
    tiles = (
        triton.cdiv(out.shape[0], chosen["BLOCK_M"]) * triton.cdiv(out.shape[1], chosen["BLOCK_N"])
        for out in (q, kv)
    )
    with torch.cuda.device_of(x):
        _norm_pair_kernel[(sum(tiles),)](
            q, kv, x, y, *norm_x, *norm_y, q_weight, kv_weight, x.shape[0], y.shape[0], q_n, kv_n, k, eps,
            **chosen,
        )  # fmt: skip
    return q, kv


def linear(
    a: Tensor, weight: Tensor, *, bias: Tensor | None = None, norm: tuple[Tensor, Tensor, float] | None =
    None, gelu: bool = False, keep: bool = False, residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return a weight^T + bias, with GELU if `gelu`, + residual; and the value before GELU if `keep`, else
    None.

    If `norm` = (weight, bias, eps) is given, LayerNorm is applied to a [rows, k] first.
    """
    rows, k = a.shape
    n = weight.shape[0]
    out = a.new_empty(rows, n)
    aux = a.new_empty(rows, n) if keep else None
    norm_weight, norm_bias, eps = norm or (None, None, 0.0)
    chosen = config(rows, n, a.dtype)
    grid = (triton.cdiv(rows, chosen["BLOCK_M"]) * triton.cdiv(n, chosen["BLOCK_N"]),)
    with torch.cuda.device_of(a):
        _linear_kernel[grid](
            out, aux, a, weight, norm_weight, norm_bias, bias, residual, None, rows, n, k, eps,
            NORM=norm is not None, TRANSPOSED=False, BIAS=bias is not None, GELU=gelu, AUX=keep,
            RESIDUAL=residual is not None, DERIVATIVE=False, **chosen,
        )  # fmt: skip
    return out, aux


def gelu_backward(grad: Tensor, weight: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return (grad weight) GELU'(h), and GELU(h), for grad [rows, k], weight [k, n], h [rows, n]."""
    (rows, k), n = grad.shape, weight.shape[1]
    out, g = torch.empty_like(h), torch.empty_like(h)
    chosen = config(rows, n, grad.dtype, TALL)
    grid = (triton.cdiv(rows, chosen["BLOCK_M"]) * triton.cdiv(n, chosen["BLOCK_N"]),)
    with torch.cuda.device_of(grad):
        _linear_kernel[grid](
            out, g, grad, weight, None, None, None, None, h, rows, n, k, 0.0,
            NORM=False, TRANSPOSED=True, BIAS=False, GELU=False, AUX=True, RESIDUAL=False, DERIVATIVE=True,
            **chosen,
        )  # fmt: skip
    return out, g


@triton.jit
def _norm_backward_kernel(
    d_x_ptr, n_ptr, partial_ptr, grad_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr,
    rows, rows_each, width, eps, RESIDUAL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute rows_each rows of d_x and of LayerNorm(x), and their partial sums for d_weight and d_bias."""
    column = tl.arange(0, BLOCK_C)
    left = column < width
    weight = tl.load(weight_ptr + column, mask=left, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + column, mask=left, other=0.0).to(tl.float32)[None, :]
    d_weight = tl.zeros((BLOCK_C,), tl.float32)
    d_bias = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * rows_each
    for start in range(0, rows_each, BLOCK_R):
        row = first + start + tl.arange(0, BLOCK_R)
        there = ((row < rows) & (start + tl.arange(0, BLOCK_R) < rows_each))[:, None] & left[None, :]
        at = row[:, None] * width + column[None, :]
        x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=there, other=0.0).to(tl.float32)
        centred = tl.where(left[None, :], x - (tl.sum(x, 1) / width)[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)[:, None]
        z = centred * rstd
        d_weight += tl.sum(grad * z, 0)
        d_bias += tl.sum(grad, 0)
        g = grad * weight
        d_x = (g - (tl.sum(g, 1) / width)[:, None] - z * (tl.sum(g * z, 1) / width)[:, None]) * rstd
        if RESIDUAL:
            d_x += tl.load(residual_ptr + at, mask=there, other=0.0).to(tl.float32)
        tl.store(d_x_ptr + at, d_x.to(d_x_ptr.dtype.element_ty), mask=there)
        tl.store(n_ptr + at, (z * weight + bias).to(n_ptr.dtype.element_ty), mask=there)
    partial = partial_ptr + tl.program_id(0) * 2 * width + column
    tl.store(partial, d_weight, mask=left)
    tl.store(partial + width, d_bias, mask=left)


def norm_config(width: int) -> dict:
    """Return a configuration with as many whole rows at a time as eight warps hold without register
    spills."""
    columns = triton.next_power_of_2(width)
    return {"BLOCK_R": max(1, 2048 // columns), "BLOCK_C": columns, "num_warps": 8}


def norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return d_x + residual, d_weight, d_bias and LayerNorm(x) for grad, x [rows, C]."""
    rows, width = x.shape
    d_x, n = torch.empty_like(x), torch.empty_like(x)
    rows_each = max(
        32, triton.cdiv(rows, 512)
    )  # depends only on the shape: all machines add in the same order
    programs = triton.cdiv(rows, rows_each)
    partial = x.new_empty(programs, 2, width, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _norm_backward_kernel[(programs,)](
            d_x, n, partial, grad, x, weight, bias, residual, rows, rows_each, width, eps,
            RESIDUAL=residual is not None, **norm_config(width),
        )  # fmt: skip
    d_weight, d_bias = partial.sum(0).to(x.dtype)
    return d_x, d_weight, d_bias, n


# The forms in which the product kernel is launched: optional pointers, and flags.
_FLAGS = ("NORM", "TRANSPOSED", "BIAS", "GELU", "AUX", "RESIDUAL", "DERIVATIVE")
_OPTIONAL = ("aux_ptr", "norm_weight_ptr", "norm_bias_ptr", "bias_ptr", "residual_ptr", "h_ptr")
_FORMS = [
    (("norm_weight_ptr", "norm_bias_ptr"), ("NORM",)),  # keys and values, if the query is given
    (("norm_weight_ptr", "norm_bias_ptr", "bias_ptr"), ("NORM", "BIAS", "GELU")),
    (("aux_ptr", "norm_weight_ptr", "norm_bias_ptr", "bias_ptr"), ("NORM", "BIAS", "GELU", "AUX")),
    (("bias_ptr", "residual_ptr"), ("BIAS", "RESIDUAL")),
]
_DERIVATIVE_FORM = (("aux_ptr", "h_ptr"), ("TRANSPOSED", "AUX", "DERIVATIVE"))


_KINDS = {"eps": "fp32", "partial_ptr": "*fp32"} | dict.fromkeys(("n", "k", "q_n", "kv_n", "width"), "i32:16")


def _linear_form(pointer: str, chosen: dict, pointers: tuple[str, ...], flags: tuple[str, ...]) -> tuple:
    constants = {name: None for name in _OPTIONAL if name not in pointers}
    constants |= {name: name in flags for name in _FLAGS}
    return compilation(_linear_kernel, chosen, constants, _KINDS, pointer)


def compilations() -> list[tuple]:
    """Return every form of every kernel (`_launch.compilation`)."""
    found = []
    for pointer in POINTERS.values():
        plain, derivative = ((SINGLE,), (SINGLE,)) if pointer == "*fp32" else ((SMALL, LARGE), (SMALL, TALL))
        for chosen in plain:
            found.append(compilation(_norm_pair_kernel, chosen, {}, _KINDS, pointer))
            found += [_linear_form(pointer, chosen, *form) for form in _FORMS]
        found += [_linear_form(pointer, chosen, *_DERIVATIVE_FORM) for chosen in derivative]
        for width in (64, 512, 1024, 2048):
            for residual in ({"RESIDUAL": True}, {"RESIDUAL": False, "residual_ptr": None}):
                config = norm_config(width)
                found.append(compilation(_norm_backward_kernel, config, residual, _KINDS, pointer))
    return found
