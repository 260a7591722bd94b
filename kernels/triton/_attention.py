"""The core of cross-attention in Triton: softmax(q k^T / sqrt(d)) v for each row and head, and its backward
pass.

It is computed in blocks of keys, so nothing of size N x M is stored. There are no atomics, so equal inputs
give equal bits.

q, a and their gradients [R, N, h d], kv [R, M, 2 h d] (keys, then values), lse and delta [R, h, N] float32.
Heads are padded to a power of two by masks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.triton._launch import POINTERS, compilation

# Tiles by element size and head size: the largest ones without register spills. float32 cannot use tensor
# cores, and d_k and d_v of wide heads need the registers of eight warps.
HALF = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
HALF_WIDE = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}
HALF_DEEP = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
HALF_LONG = {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}
SINGLE = {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1}
SINGLE_WIDE = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}
CONFIGS = [HALF, HALF_WIDE, HALF_DEEP, HALF_LONG, SINGLE, SINGLE_WIDE]


def configs(dtype: torch.dtype, d: int, n: int) -> tuple[dict, dict, dict]:
    """Return the launch configurations of the forward kernel, of that for d_q, and of that for d_k and
    d_v."""
    wide = d > 64
    if dtype == torch.float32:
        return (SINGLE_WIDE if wide else SINGLE,) * 3
    if wide:
        return HALF_DEEP, HALF, HALF_WIDE
    return HALF_LONG if n >= 1024 else HALF, HALF, HALF


@triton.jit
def _tile(ptr, row, there_row, stride, d, BLOCK_D: tl.constexpr):
    """Load rows of one head, [rows, BLOCK_D], zero outside."""
    column = tl.arange(0, BLOCK_D)
    there = there_row[:, None] & (column < d)[None, :]
    return tl.load(ptr + row[:, None] * stride + column[None, :], mask=there, other=0.0)


@triton.jit
def _put(ptr, value, row, there_row, stride, d, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    there = there_row[:, None] & (column < d)[None, :]
    tl.store(ptr + row[:, None] * stride + column[None, :], value.to(ptr.dtype.element_ty), mask=there)


@triton.jit
def _head(n, m, heads, d):
    """Return the number of the program's row and head, the stride of a token, and the offsets of the head in
    [R, N, h d] and in kv."""
    pair = tl.program_id(1).to(tl.int64)
    r, head = pair // heads, pair % heads
    width = heads * d
    return pair, width, r * n * width + head * d, r * m * 2 * width + head * d


@triton.jit
def _attention_fwd_kernel(
    a_ptr, lse_ptr, q_ptr, kv_ptr, n, m, heads, d, scale,
    KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute a and, if KEEP, lse of BLOCK_M tokens of one head."""
    pair, width, from_x, from_y = _head(n, m, heads, d)
    asks = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    asking = asks < n
    q = _tile(q_ptr + from_x, asks, asking, width, d, BLOCK_D)
    k_ptr = kv_ptr + from_y
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    a = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, m, BLOCK_N):
        answers = start + tl.arange(0, BLOCK_N)
        answering = answers < m
        k = _tile(k_ptr, answers, answering, 2 * width, d, BLOCK_D)
        v = _tile(k_ptr + width, answers, answering, 2 * width, d, BLOCK_D)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(answering[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        shrink = tl.exp(top - higher)
        p = tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        a = tl.dot(p.to(v.dtype), v, a * shrink[:, None], input_precision="ieee")
        top = higher
    _put(a_ptr + from_x, a / total[:, None], asks, asking, width, d, BLOCK_D)
    if KEEP:
        tl.store(lse_ptr + pair * n + asks, top + tl.log(total), mask=asking)


@triton.jit
def _attention_dq_kernel(
    d_q_ptr, delta_ptr, d_a_ptr, a_ptr, lse_ptr, q_ptr, kv_ptr, n, m, heads, d, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute d_q and delta = sum(d_a a) of BLOCK_M tokens of one head."""
    pair, width, from_x, from_y = _head(n, m, heads, d)
    asks = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    asking = asks < n
    q = _tile(q_ptr + from_x, asks, asking, width, d, BLOCK_D)
    d_a = _tile(d_a_ptr + from_x, asks, asking, width, d, BLOCK_D)
    a = _tile(a_ptr + from_x, asks, asking, width, d, BLOCK_D)
    delta = tl.sum(d_a.to(tl.float32) * a.to(tl.float32), 1)
    tl.store(delta_ptr + pair * n + asks, delta, mask=asking)
    lse = tl.load(lse_ptr + pair * n + asks, mask=asking, other=float("inf"))
    k_ptr = kv_ptr + from_y
    d_q = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, m, BLOCK_N):
        answers = start + tl.arange(0, BLOCK_N)
        answering = answers < m
        k = _tile(k_ptr, answers, answering, 2 * width, d, BLOCK_D)
        v = _tile(k_ptr + width, answers, answering, 2 * width, d, BLOCK_D)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        p = tl.where(answering[None, :], tl.exp(score - lse[:, None]), 0.0)
        d_p = tl.dot(d_a, tl.trans(v), input_precision="ieee")
        d_score = p * (d_p - delta[:, None]) * scale
        d_q = tl.dot(d_score.to(k.dtype), k, d_q, input_precision="ieee")
    _put(d_q_ptr + from_x, d_q, asks, asking, width, d, BLOCK_D)


@triton.jit
def _attention_dkv_kernel(
    d_kv_ptr, delta_ptr, d_a_ptr, lse_ptr, q_ptr, kv_ptr, n, m, heads, d, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute d_k and d_v of BLOCK_N tokens (keys and values) of one head."""
    pair, width, from_x, from_y = _head(n, m, heads, d)
    answers = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    answering = answers < m
    k = _tile(kv_ptr + from_y, answers, answering, 2 * width, d, BLOCK_D)
    v = _tile(kv_ptr + from_y + width, answers, answering, 2 * width, d, BLOCK_D)
    q_ptr += from_x
    d_a_ptr += from_x
    d_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    d_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, n, BLOCK_M):
        asks = start + tl.arange(0, BLOCK_M)
        asking = asks < n
        q = _tile(q_ptr, asks, asking, width, d, BLOCK_D)
        d_a = _tile(d_a_ptr, asks, asking, width, d, BLOCK_D)
        lse = tl.load(lse_ptr + pair * n + asks, mask=asking, other=float("inf"))
        delta = tl.load(delta_ptr + pair * n + asks, mask=asking, other=0.0)
        p = tl.exp(tl.dot(k, tl.trans(q), input_precision="ieee") * scale - lse[None, :])  # transposed
        d_v = tl.dot(p.to(v.dtype), d_a, d_v, input_precision="ieee")
        d_p = tl.dot(v, tl.trans(d_a), input_precision="ieee")
        d_score = p * (d_p - delta[None, :]) * scale
        d_k = tl.dot(d_score.to(q.dtype), q, d_k, input_precision="ieee")
    _put(d_kv_ptr + from_y, d_k, answers, answering, 2 * width, d, BLOCK_D)
    _put(d_kv_ptr + from_y + width, d_v, answers, answering, 2 * width, d, BLOCK_D)


def block_d(d: int) -> int:
    """Return the number of columns of a tile that holds a head."""
    return max(16, triton.next_power_of_2(d))


def _sizes(q: Tensor, kv: Tensor, heads: int) -> tuple:
    d = q.shape[2] // heads
    return q.shape[1], kv.shape[1], heads, d, d**-0.5


def attention(q: Tensor, kv: Tensor, heads: int, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Return a, and lse or None."""
    a, (r, n, _) = torch.empty_like(q), q.shape
    lse = q.new_empty(r, heads, n, dtype=torch.float32) if keep else None
    sizes = _sizes(q, kv, heads)
    chosen, _, _ = configs(q.dtype, sizes[3], n)
    with torch.cuda.device_of(q):
        _attention_fwd_kernel[triton.cdiv(n, chosen["BLOCK_M"]), r * heads](
            a, lse, q, kv, *sizes, KEEP=keep, BLOCK_D=block_d(sizes[3]), **chosen
        )
    return a, lse


def attention_backward(
    d_a: Tensor, q: Tensor, kv: Tensor, a: Tensor, lse: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Return d_q and d_kv."""
    d_q, d_kv, delta = torch.empty_like(q), torch.empty_like(kv), torch.empty_like(lse)
    sizes = _sizes(q, kv, heads)
    _, for_q, for_kv = configs(q.dtype, sizes[3], q.shape[1])
    d, pairs = block_d(sizes[3]), q.shape[0] * heads
    with torch.cuda.device_of(q):
        _attention_dq_kernel[triton.cdiv(q.shape[1], for_q["BLOCK_M"]), pairs](
            d_q, delta, d_a, a, lse, q, kv, *sizes, BLOCK_D=d, **for_q
        )
        _attention_dkv_kernel[triton.cdiv(kv.shape[1], for_kv["BLOCK_N"]), pairs](
            d_kv, delta, d_a, lse, q, kv, *sizes, BLOCK_D=d, **for_kv
        )
    return d_q, d_kv


_KINDS = {"scale": "fp32", "lse_ptr": "*fp32", "delta_ptr": "*fp32", "d": "i32:16"}


def compilations() -> list[tuple]:
    """Return every form of every kernel, for heads of 64 and 128 channels (`_launch.compilation`)."""
    found = []
    for dtype, pointer in POINTERS.items():
        for d in (64, 128):
            short, for_q, for_kv = configs(dtype, d, 256)
            long = configs(dtype, d, 4096)[0]
            for chosen in [short] if long is short else [short, long]:
                keep, drop = {"KEEP": True, "BLOCK_D": d}, {"KEEP": False, "BLOCK_D": d, "lse_ptr": None}
                for form in (keep, drop):
                    found.append(compilation(_attention_fwd_kernel, chosen, form, _KINDS, pointer))
            for kernel, chosen in ((_attention_dq_kernel, for_q), (_attention_dkv_kernel, for_kv)):
                found.append(compilation(kernel, chosen, {"BLOCK_D": d}, _KINDS, pointer))
    return found
