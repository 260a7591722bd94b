"""Compute map_loss and its backward in Triton.

A program processes some cells: the squares of f x f pixels (f = factor) between four neighbouring logits
(those at the border have a half or a quarter of the pixels). It processes their pixels one after the other,
with all channels at once. Forward, it stores the sums over its pixels, which one program per row adds up.
Backward, it stores the contributions of its cells to their four logits, and every logit adds its four
contributions. All sums have a fixed order.

Floor for six images of 512x512 with 21 classes: 1.6 MB of labels and 1 MB of bf16 logits are read, and 33
million exponentials computed.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmtl.kernels.map_loss import readable
from dmtl.kernels.triton._launch import INTERPRETED, POINTERS, compilation, support
from dmtl.ops.arithmetic import SHORTEST
from dmtl.ops.map_loss import FACTORS, empty_losses

MOST_CHANNELS = 64  # the reference computes calls with more channels
TILE = 256  # number of entries of a program's tile of cells x channels
GATHER = {"BLOCK": 512, "num_warps": 4}
FINISH = {"BLOCK": 128, "num_warps": 4}
_SHORTEST_SQUARE = tl.constexpr(SHORTEST**2)
_LARGEST = tl.constexpr(3.4028234663852886e38)


def _too_many(logits, label, *options) -> list[str]:
    channels = logits.shape[1]
    return [f"{channels} channels are more than {MOST_CHANNELS}"] if channels > MOST_CHANNELS else []


SUPPORT = support(_too_many, lambda grad, logits, *others: _too_many(logits, *others))


@triton.jit
def _logit(ptr, inside):
    """Load a tile of logits; those that are not finite become NaN."""
    logit = tl.load(ptr, mask=inside, other=0.0).to(tl.float32)
    return logit + (logit - logit)


@triton.jit
def _known(label, ignore):
    return (tl.abs(label) <= _LARGEST) & (label != ignore)


@triton.jit
def _softplus(x):
    """Return log(1 + exp x); if exp x is small, by the series of the logarithm."""
    e = tl.exp(-tl.abs(x))
    near = tl.log(1.0 + e)
    far = e * (1.0 - e * (0.5 - e * 0.33333334))
    return tl.where(x > 0.0, x, 0.0) + tl.where(e < 0.01, far, near)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))


@triton.jit
def _label(label_ptr, at, plane, here, c, channels, ignore, lowest, KIND: tl.constexpr, LOG: tl.constexpr):
    """Return the labels y of one pixel of each cell, and whether they are valid, [CELLS, 1].

    y is [CELLS, CHANNELS] for "unit" and [CELLS, 1] for other kinds.
    """
    if KIND == "unit":
        y = tl.load(label_ptr + at + c * plane, mask=here & (c < channels), other=0.0).to(tl.float32)
        unknown = tl.sum(tl.where(_known(y, ignore) | (c >= channels), 0, 1), 1, keep_dims=True)
        valid = here & (unknown == 0) & (tl.sum(tl.where(y != 0.0, 1, 0), 1, keep_dims=True) > 0)
    else:
        y = tl.load(label_ptr + at, mask=here, other=0).to(tl.float32)
        valid = here & _known(y, ignore)
        if KIND == "cross_entropy":
            valid = valid & (y >= 0.0) & (y < channels)
            y = tl.where(valid, y, 0.0)
        if KIND == "absolute":
            valid = valid & (y > lowest)
        if LOG:
            y = tl.log(tl.where(valid, y, 1.0))
    return y, valid


@triton.jit
def _value(
    z, y, c, channels, weight_above, weight_below, KIND: tl.constexpr, GRAD: tl.constexpr
):  # fmt: skip
    """Return the loss [CELLS, 1] or, with GRAD, the gradient [CELLS, CHANNELS] of one pixel of each cell.

    The loss of "logistic" is without its weight.
    """
    if KIND == "cross_entropy":
        mine = c == y.to(tl.int32)
        z = tl.where(c < channels, z, float("-inf"))
        less = z - tl.max(z, 1, keep_dims=True)
        e = tl.exp(less)
        total = tl.sum(e, 1, keep_dims=True)
        if GRAD:
            value = e / total - tl.where(mine, 1.0, 0.0)
        else:
            value = tl.log(total) - tl.sum(tl.where(mine, less, 0.0), 1, keep_dims=True)
    elif KIND == "logistic":
        side = tl.where(c == channels - 1, 1.0, -1.0)
        m = tl.sum(side * z, 1, keep_dims=True)
        if GRAD:
            value = side * tl.where(y > 0.5, -weight_above * _sigmoid(-m), weight_below * _sigmoid(m))
        else:
            value = _softplus(tl.where(y > 0.5, -m, m))
    elif KIND == "unit":
        squares = tl.sum(z * z, 1, keep_dims=True)
        short = squares < _SHORTEST_SQUARE
        scale = 1.0 / tl.sqrt(tl.where(short, _SHORTEST_SQUARE, squares))
        u = z * scale
        if GRAD:
            sign = _sign(u - y)
            value = scale * (sign - u * tl.where(short, 0.0, tl.sum(u * sign, 1, keep_dims=True)))
        else:
            value = tl.sum(tl.abs(u - y), 1, keep_dims=True)
    else:
        value = _sign(z - y) if GRAD else tl.abs(z - y)
    return value


@triton.jit
def _weights(counts_ptr, row, positive_weight, negative_weight, balanced):
    """Return the number of valid pixels of the row (at least 1), w+ and w-."""
    valid = tl.maximum(tl.load(counts_ptr + 2 * row), 1).to(tl.float32)
    share = tl.load(counts_ptr + 2 * row + 1).to(tl.float32) / valid
    return (
        valid,
        positive_weight * (1.0 - balanced * share),
        negative_weight * (1.0 - balanced * (1.0 - share)),
    )


@triton.jit
def _cells_kernel(
    sums_ptr, tallies_ptr, parts_ptr, grad_ptr, counts_ptr, logits_ptr, label_ptr,
    stride_n, stride_c, stride_y, stride_x, channels, h, w, height, width,
    ignore, lowest, positive_weight, negative_weight, balanced,
    KIND: tl.constexpr, LOG: tl.constexpr, GRAD: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """Process the cells of a program.

    Forward: compute sums [rows, programs, 2] of the losses of labels below and above one half, and tallies
    [rows, programs, 2] of valid pixels and of those above. GRAD: compute parts [rows, 4, cells, channels].
    """
    row = tl.program_id(1).to(tl.int64)
    cells = (h + 1) * (w + 1)
    cell = (tl.program_id(0) * CELLS + tl.arange(0, CELLS))[:, None]
    c = tl.arange(0, CHANNELS)[None, :]
    i, j = cell // (w + 1), cell % (w + 1)
    inside = (cell < cells) & (c < channels)
    logits_ptr += row * stride_n + c * stride_c
    upper, lower = tl.maximum(i - 1, 0) * stride_y, tl.minimum(i, h - 1) * stride_y
    left, right = tl.maximum(j - 1, 0) * stride_x, tl.minimum(j, w - 1) * stride_x
    u00, u01 = _logit(logits_ptr + upper + left, inside), _logit(logits_ptr + upper + right, inside)
    u10, u11 = _logit(logits_ptr + lower + left, inside), _logit(logits_ptr + lower + right, inside)
    plane = tl.zeros((), tl.int64) + height * width
    label_ptr += row * plane * (channels if KIND == "unit" else 1)
    weight_above, weight_below, factor = 1.0, 1.0, 1.0
    if GRAD:
        valid_pixels, weight_above, weight_below = _weights(
            counts_ptr, row, positive_weight, negative_weight, balanced
        )
        factor = tl.load(grad_ptr + row) / valid_pixels
    g00 = tl.zeros((CELLS, CHANNELS), tl.float32)
    g01, g10, g11 = g00, g00, g00
    below = tl.zeros((CELLS, 1), tl.float32)
    above = below
    valid_count = tl.zeros((CELLS, 1), tl.int32)
    above_count = valid_count
    for dy in range(FACTOR):
        y = FACTOR * i - FACTOR // 2 + dy
        down = tl.where(
            i == 0, 1.0, tl.where(i == h, 0.0, (2 * dy + 1) / (2 * FACTOR))
        )  # at the border both rows are one
        at_left, at_right = u00 + down * (u10 - u00), u01 + down * (u11 - u01)
        to_left = tl.zeros((CELLS, CHANNELS), tl.float32)
        to_right = to_left
        for dx in range(FACTOR):
            x = FACTOR * j - FACTOR // 2 + dx
            across = tl.where(j == 0, 1.0, tl.where(j == w, 0.0, (2 * dx + 1) / (2 * FACTOR)))
            z = at_left + across * (at_right - at_left)
            here = (cell < cells) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            label, valid = _label(
                label_ptr, y * width + x, plane, here, c, channels, ignore, lowest, KIND, LOG
            )
            value = tl.where(
                valid, _value(z, label, c, channels, weight_above, weight_below, KIND, GRAD), 0.0
            )
            if GRAD:
                to_left += (1.0 - across) * value
                to_right += across * value
            else:
                valid_count += tl.where(valid, 1, 0)
                if KIND == "logistic":
                    below += tl.where(label > 0.5, 0.0, value)
                    above += tl.where(label > 0.5, value, 0.0)
                    above_count += tl.where(valid & (label > 0.5), 1, 0)
                else:
                    below += value
        g00 += (1.0 - down) * to_left
        g01 += (1.0 - down) * to_right
        g10 += down * to_left
        g11 += down * to_right
    if GRAD:
        corner = (tl.zeros((), tl.int64) + cells) * channels
        parts_ptr += row * 4 * corner + cell * channels + c
        tl.store(parts_ptr, factor * g00, mask=inside)
        tl.store(parts_ptr + corner, factor * g01, mask=inside)
        tl.store(parts_ptr + 2 * corner, factor * g10, mask=inside)
        tl.store(parts_ptr + 3 * corner, factor * g11, mask=inside)
    else:
        at = 2 * (row * tl.num_programs(0) + tl.program_id(0))
        tl.store(sums_ptr + at, tl.sum(below))
        tl.store(sums_ptr + at + 1, tl.sum(above))
        tl.store(tallies_ptr + at, tl.sum(valid_count))
        tl.store(tallies_ptr + at + 1, tl.sum(above_count))


@triton.jit
def _finish_kernel(
    loss_ptr, counts_ptr, sums_ptr, tallies_ptr, programs, positive_weight, negative_weight, balanced,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss and the counts of one row from the sums of its programs."""
    row = tl.program_id(0).to(tl.int64)
    below, above = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    valid_count, above_count = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        at, there = 2 * (row * programs + program), program < programs
        below += tl.load(sums_ptr + at, mask=there, other=0.0)
        above += tl.load(sums_ptr + at + 1, mask=there, other=0.0)
        valid_count += tl.load(tallies_ptr + at, mask=there, other=0)
        above_count += tl.load(tallies_ptr + at + 1, mask=there, other=0)
    valid_count, above_count = tl.sum(valid_count), tl.sum(above_count)
    tl.store(counts_ptr + 2 * row, valid_count)
    tl.store(counts_ptr + 2 * row + 1, above_count)
    valid = tl.maximum(valid_count, 1).to(tl.float32)
    share = balanced * (above_count.to(tl.float32) / valid)
    above = positive_weight * (1.0 - share) * tl.sum(above)
    below = negative_weight * (1.0 - balanced + share) * tl.sum(below)
    tl.store(loss_ptr + row, (below + above) / valid)


@triton.jit
def _gather_kernel(
    d_ptr, parts_ptr, stride_n, stride_c, stride_y, stride_x, channels, h, w, BLOCK: tl.constexpr
):  # fmt: skip
    """Compute the gradient of every logit: the sum of the parts from the four cells around it."""
    row = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < h * w * channels
    c, x, y = entry % channels, entry // channels % w, entry // channels // w
    line = (w + 1) * channels
    corner = (tl.zeros((), tl.int64) + h + 1) * line
    parts_ptr += row * 4 * corner + y * line + x * channels + c
    total = tl.load(parts_ptr + 3 * corner, mask=inside, other=0.0)
    total += tl.load(parts_ptr + 2 * corner + channels, mask=inside, other=0.0)
    total += tl.load(parts_ptr + corner + line, mask=inside, other=0.0)
    total += tl.load(parts_ptr + line + channels, mask=inside, other=0.0)
    at = row * stride_n + c * stride_c + y * stride_y + x * stride_x
    tl.store(d_ptr + at, total.to(d_ptr.dtype.element_ty), mask=inside)


def _config(channels: int) -> dict[str, int]:
    width = triton.next_power_of_2(channels)
    width = width if width <= 4 else max(16, width)  # fewer forms to compile
    cells = 64 if INTERPRETED else min(128, TILE // width)  # in the interpreter, every operation costs time
    return {"CELLS": cells, "CHANNELS": width, "num_warps": 4, "num_stages": 1}


class _Call:
    """Launch the kernel over cells for the arguments of an operator."""

    def __init__(self, logits: Tensor, label: Tensor, options: tuple):
        kind, ignore, positive_weight, negative_weight, balanced, log, positive, factor = options
        (self.rows, channels, h, w), (height, width) = logits.shape, label.shape[2:]
        label, ignore = readable(label, ignore)
        label = label.float() if kind in ("unit", "absolute") else label
        weights = (positive_weight, negative_weight) if kind == "logistic" else (1.0, 1.0)
        self.weights = (*weights, float(balanced))
        self.cells, self.config = (h + 1) * (w + 1), _config(channels)
        self.programs = triton.cdiv(self.cells, self.config["CELLS"])
        lowest = 0.0 if positive else float("-inf")
        self.arguments = (
            logits, label, *logits.stride(), channels, h, w, height, width, ignore, lowest, *self.weights
        )  # fmt: skip
        self.constants = dict(KIND=kind, LOG=log, FACTOR=factor, **self.config)

    def run(self, *outputs: Tensor | None, grad: bool) -> None:
        _cells_kernel[self.programs, self.rows](*outputs, *self.arguments, GRAD=grad, **self.constants)


def map_loss(logits, label, *options) -> tuple[Tensor, Tensor]:
    loss, counts = empty_losses(logits)
    if logits.numel():
        with torch.cuda.device_of(logits):
            call = _Call(logits, label, options)
            sums = logits.new_empty((call.rows, call.programs, 2), dtype=torch.float32)
            tallies = torch.empty_like(sums, dtype=torch.int32)
            call.run(sums, tallies, None, None, None, grad=False)
            _finish_kernel[(call.rows,)](loss, counts, sums, tallies, call.programs, *call.weights, **FINISH)
    return loss, counts


def map_loss_backward(grad, logits, label, counts, *options) -> Tensor:
    d_logits = torch.empty_like(logits)
    if logits.numel():
        with torch.cuda.device_of(logits):
            call = _Call(logits, label, options)
            rows, channels, h, w = logits.shape
            parts = logits.new_empty((rows, 4, call.cells, channels), dtype=torch.float32)
            call.run(None, None, parts, grad.contiguous(), counts, grad=True)
            grid = (triton.cdiv(h * w * channels, GATHER["BLOCK"]), rows)
            _gather_kernel[grid](d_logits, parts, *d_logits.stride(), channels, h, w, **GATHER)
    return d_logits


_WIDTHS = {"cross_entropy": (2, 3, 16, 32, 64), "logistic": (1, 2), "unit": (3,), "absolute": (1,)}


_KINDS = dict.fromkeys(("ignore", "lowest", "positive_weight", "negative_weight", "balanced"), "fp32")
_KINDS |= dict.fromkeys(("loss_ptr", "sums_ptr", "parts_ptr", "grad_ptr"), "*fp32")
_KINDS |= {"tallies_ptr": "*i32", "counts_ptr": "*i32"}


def compilations() -> list[tuple]:
    """Return every form of the kernels (`_launch.compilation`)."""
    found = [compilation(_finish_kernel, FINISH, {}, _KINDS)]
    for pointer in POINTERS.values():
        found.append(compilation(_gather_kernel, GATHER, {}, _KINDS | {"d_ptr": pointer}))
        for kind, widths in _WIDTHS.items():
            for label in ("*u8", "*fp32") if kind in ("cross_entropy", "logistic") else ("*fp32",):
                kinds = _KINDS | {"logits_ptr": pointer, "label_ptr": label}
                for log, factor in product((False, True) if kind == "absolute" else (False,), FACTORS):
                    constants = dict(KIND=kind, LOG=log, FACTOR=factor)
                    found += [f for width in widths for f in _cells_forms(kinds, constants, _config(width))]
    return found


def _cells_forms(kinds: dict[str, str], constants: dict, config: dict) -> list[tuple]:
    """Return the forms of forward and backward."""
    forward, backward = ("sums_ptr", "tallies_ptr"), ("parts_ptr", "grad_ptr", "counts_ptr")
    return [
        compilation(_cells_kernel, config, constants | {"GRAD": grad} | dict.fromkeys(absent), kinds)
        for grad, absent in ((False, backward), (True, forward))
    ]
