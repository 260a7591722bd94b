"""Compute condition_tokens and its backward in Triton.

Forward, there are two launches: an implicit GEMM that gathers patches from the maps, and the LayerNorm and
projection of `_linear`. A tile of tokens processes the maps one after the other; their addresses and numbers
of channels are launch arguments. k runs over (channel, ky, kx), as the weight stores it. Backward, two
kernels gather patches from the maps and add them back, around products that torch computes; LayerNorm's
backward is that of `_linear`.

Floor for one image (five tasks, 34 channels, C = 512): 0.28 GFLOP and 2 MB take less time than a launch; two
launches take about 5 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels import condition_tokens as shared
from dmtl.kernels.tokens import why_not_sizes
from dmtl.kernels.triton import _linear
from dmtl.kernels.triton._launch import POINTERS, compilation, support
from dmtl.kernels.triton._linear import linear, norm_backward
from dmtl.ops.condition_tokens import GEOMETRY, empty_outputs

# There are few tokens, and narrow tiles give more programs. float32 cannot use tensor cores.
HALF = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
SINGLE = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
PATCHES = {"BLOCK_M": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 1}
CONFIGS = [HALF, SINGLE, PATCHES, *_linear.CONFIGS]


def _shapes(maps, weight, bias, norm_weight, norm_bias, query_weight, *_) -> list[str]:
    widths = {} if query_weight is None else dict(width=weight.shape[0], query_width=query_weight.shape[0])
    return shared.shapes(maps) + why_not_sizes(**widths)


SUPPORT = support(_shapes, shared.backward_shapes, products=True)


@triton.jit
def _integer(x):
    """Return the integer of a launch argument that `_plain` made."""
    return x // 16


@triton.jit
def _values(map_ptr, strides, at: tl.constexpr, sample, y0, x0, inside, k, count, h, w, SIDE: tl.constexpr):
    """Load values k = (channel, ky, kx) of patches whose first pixels are (y0, x0); zeros outside the map."""
    y = y0[:, None] + (k % (SIDE * SIDE) // SIDE)[None, :]
    x = x0[:, None] + (k % SIDE)[None, :]
    there = inside[:, None] & (k < count)[None, :] & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    row = sample * _integer(strides[at])
    offset = (k // (SIDE * SIDE) * _integer(strides[at + 1]))[None, :] + y * _integer(strides[at + 2])
    return tl.load(map_ptr + row[:, None] + (offset + x * _integer(strides[at + 3])), mask=there, other=0.0)


@triton.jit
def _product_kernel(
    out_ptr, map_ptrs, channels, strides, weight_ptr, bias_ptr, rows, grid_h, grid_w, depth, width,
    MAPS: tl.constexpr, BIAS: tl.constexpr, REDUCTION: tl.constexpr, SIDE: tl.constexpr, PADDING:
    tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute tokens [rows, width] = patches weight^T + bias."""
    tiles = tl.cdiv(width, BLOCK_N)
    row = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    sample = (row // (grid_h * grid_w)).to(tl.int64)
    y0 = row // grid_w % grid_h * REDUCTION - PADDING
    x0 = row % grid_w * REDUCTION - PADDING
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    weight_ptr += n[None, :] * depth
    for i in tl.static_range(MAPS):
        count = _integer(channels[i]) * (SIDE * SIDE)
        for start in range(0, count, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            a = _values(
                map_ptrs[i], strides, 4 * i, sample, y0, x0, inside, k, count, grid_h * REDUCTION,
                grid_w * REDUCTION, SIDE,
            )  # fmt: skip
            b = tl.load(weight_ptr + k[:, None], mask=(k < count)[:, None] & (n < width)[None, :], other=0.0)
            acc = tl.dot(a, b, acc, input_precision="ieee")
        weight_ptr += count
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
    at = row.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (n < width)[None, :])


@triton.jit
def _take_kernel(
    patches_ptr, map_ptrs, channels, strides, rows, grid_h, grid_w, depth,
    MAPS: tl.constexpr, REDUCTION: tl.constexpr, SIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gather patches [rows, depth] from the maps."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < rows
    sample = (row // (grid_h * grid_w)).to(tl.int64)
    y0 = row // grid_w % grid_h * REDUCTION - PADDING
    x0 = row % grid_w * REDUCTION - PADDING
    patches_ptr += row.to(tl.int64)[:, None] * depth
    for i in tl.static_range(MAPS):
        count = _integer(channels[i]) * (SIDE * SIDE)
        for start in range(0, count, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            a = _values(
                map_ptrs[i], strides, 4 * i, sample, y0, x0, inside, k, count, grid_h * REDUCTION,
                grid_w * REDUCTION, SIDE,
            )  # fmt: skip
            tl.store(patches_ptr + k[None, :], a, mask=inside[:, None] & (k < count)[None, :])
        patches_ptr += count


@triton.jit
def _put_kernel(
    d_map_ptrs, channels, firsts, d_patches_ptr, pixels, grid_h, grid_w, depth,
    MAPS: tl.constexpr, REDUCTION: tl.constexpr, SIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute d_maps (channels-last): every pixel adds up its gradients in all patches that contain it."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = grid_w * REDUCTION
    y = pixel // w % (grid_h * REDUCTION) + PADDING
    x = pixel % w + PADDING
    sample = (pixel // (w * grid_h * REDUCTION)).to(tl.int64)
    for i in tl.static_range(MAPS):
        count = _integer(channels[i])
        for start in range(0, count, BLOCK_K):
            c = start + tl.arange(0, BLOCK_K)
            there = (pixel < pixels)[:, None] & (c < count)[None, :]
            value = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
            for tap_y in range(SIDE // REDUCTION):
                for tap_x in range(SIDE // REDUCTION):
                    cell_y = y // REDUCTION - tap_y
                    cell_x = x // REDUCTION - tap_x
                    real = (cell_y >= 0) & (cell_y < grid_h) & (cell_x >= 0) & (cell_x < grid_w)
                    tap = (y % REDUCTION + tap_y * REDUCTION) * SIDE + x % REDUCTION + tap_x * REDUCTION
                    row = (sample * grid_h + cell_y) * grid_w + cell_x
                    at = (row * depth + tap)[:, None] + ((_integer(firsts[i]) + c) * (SIDE * SIDE))[None, :]
                    value += tl.load(d_patches_ptr + at, mask=there & real[:, None], other=0.0).to(tl.float32)
            at = pixel.to(tl.int64)[:, None] * count + c[None, :]
            tl.store(d_map_ptrs[i] + at, value.to(d_map_ptrs[i].dtype.element_ty), mask=there)


def _plain(*values: int) -> tuple[int, ...]:
    """Encode integers so that they are neither 1 nor a multiple of 16, for which Triton would compile
    again."""
    return tuple(16 * value + 2 for value in values)


def _where(maps: list[Tensor]) -> dict:
    """Return the launch arguments with the addresses, channels and strides of the maps."""
    return dict(
        map_ptrs=tuple(maps), channels=_plain(*(m.shape[1] for m in maps)),
        strides=_plain(*(step for m in maps for step in m.stride())),
    )  # fmt: skip


def _grid(maps: list[Tensor], weight: Tensor, reduction: int) -> dict:
    _, _, h, w = maps[0].shape
    side, padding = GEOMETRY[reduction]
    return dict(
        grid_h=h // reduction, grid_w=w // reduction, depth=weight.shape[1] * side * side,
        REDUCTION=reduction, SIDE=side, PADDING=padding,
    )  # fmt: skip


def condition_tokens(
    maps, weight, bias, norm_weight, norm_bias, query_weight, reduction, eps
) -> tuple[Tensor, Tensor]:
    tokens, query = empty_outputs(maps, weight, query_weight, reduction)
    if not tokens.numel():
        return tokens, query
    flat = tokens.view(-1, tokens.shape[-1])
    rows, width = flat.shape
    chosen = SINGLE if weight.dtype == torch.float32 else HALF
    grid = (triton.cdiv(rows, chosen["BLOCK_M"]) * triton.cdiv(width, chosen["BLOCK_N"]),)
    with torch.cuda.device_of(weight):
        _product_kernel[grid](
            flat, **_where(maps), weight_ptr=weight.contiguous(), bias_ptr=shared.contiguous(bias),
            rows=rows, width=width, **_grid(maps, weight, reduction), MAPS=len(maps), BIAS=bias is not None,
            **chosen,
        )  # fmt: skip
    if query_weight is not None:
        norm = *shared.norm_parameters(norm_weight, norm_bias, weight), eps
        query = linear(flat, query_weight.contiguous(), norm=norm)[0].view(query.shape)
    return tokens, query


def _take(maps: list[Tensor], weight: Tensor, reduction: int) -> Tensor:
    """Return the patches [rows, C_t k k]."""
    sizes = _grid(maps, weight, reduction)
    rows = maps[0].shape[0] * sizes["grid_h"] * sizes["grid_w"]
    patches = weight.new_empty(rows, sizes["depth"])
    with torch.cuda.device_of(weight):
        _take_kernel[(triton.cdiv(rows, PATCHES["BLOCK_M"]),)](
            patches, **_where(maps), rows=rows, **sizes, MAPS=len(maps), **PATCHES
        )
    return patches


def _put(
    d_patches: Tensor, d_maps: list[Tensor | None], maps: list[Tensor], weight: Tensor, reduction: int
) -> None:
    """Compute the gradients of the maps for which `d_maps` has a tensor."""
    firsts = [sum(m.shape[1] for m in maps[:i]) for i in range(len(maps))]
    needed = [(out, first) for out, first in zip(d_maps, firsts, strict=True) if out is not None]
    outs = tuple(out for out, _ in needed)
    pixels = maps[0].shape[0] * maps[0].shape[2] * maps[0].shape[3]
    with torch.cuda.device_of(weight):
        _put_kernel[(triton.cdiv(pixels, PATCHES["BLOCK_M"]),)](
            outs, _plain(*(out.shape[1] for out in outs)), _plain(*(first for _, first in needed)), d_patches,
            pixels=pixels, **_grid(maps, weight, reduction), MAPS=len(outs), **PATCHES,
        )  # fmt: skip


def condition_tokens_backward(*args) -> list[Tensor]:
    return shared.library_backward(_take, _put, norm_backward, *args)


def compilations() -> list[tuple]:
    """Return every form of the kernels, for five maps (`_launch.compilation`)."""
    found = []
    for pointer in POINTERS.values():
        kinds = dict.fromkeys(("map_ptrs", "d_map_ptrs"), (pointer,) * 5)
        kinds |= dict.fromkeys(("channels", "firsts"), ("i32",) * 5) | {"strides": ("i32",) * 20}
        for reduction, (side, padding) in GEOMETRY.items():
            constants = dict(MAPS=5, REDUCTION=reduction, SIDE=side, PADDING=padding)
            chosen = SINGLE if pointer == "*fp32" else HALF
            for bias in ({"BIAS": True}, {"BIAS": False, "bias_ptr": None}):
                found.append(compilation(_product_kernel, chosen, constants | bias, kinds, pointer))
            for kernel in (_take_kernel, _put_kernel):
                found.append(compilation(kernel, PATCHES, constants, kinds, pointer))
    return found
