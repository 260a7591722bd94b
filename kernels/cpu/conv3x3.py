"""Compute conv3x3 and its backward by Winograd's F(4x4, 3x3).

The kernels are in csrc/cpu/conv3x3.cpp and conv3x3_gradient.cpp.

If a convolution has so few pixels that transforming the weights would cost more than it saves, torch computes
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtl.kernels.native import CPU
from dmtl.ops.conv3x3 import SPEC, residual_gradient
from dmtl.runtime.memory import empty, empty_like

_MOST_TASKS = 64  # kMostTasks of conv3x3_cpu.h
# Transforming weights pays off if a task has at least one pixel for this number of elements of the weight
# matrix (measured: from 1 pixel with 32 channels to 500 pixels with 512 channels).
_ELEMENTS_A_PIXEL = 512


def _too_many_tasks(counts: list[int]) -> list[str]:
    return [f"{len(counts)} tasks are more than {_MOST_TASKS}"] if len(counts) > _MOST_TASKS else []


SUPPORT = CPU.support(
    dtypes=(torch.float32,),
    shapes=lambda x, weights, biases, tap_biases, packed, counts, *rest: _too_many_tasks(counts),
    backward_shapes=lambda grad, x, weights, out, counts, *flags: _too_many_tasks(counts),
)


def conv3x3(x, weights, biases, tap_biases, packed, counts, relu, residual) -> Tensor:
    if not all(_is_packed(value, weight) for value, weight in zip(packed, weights, strict=bool(packed))):
        packed = []
    if not packed and not tap_biases and _few_pixels(x, weights, counts):
        return SPEC.forward.reference(x, weights, biases, [], [], counts, relu, residual)
    within = relu and residual is None
    out = _convolve(x, weights, biases, tap_biases, packed, counts, relu=within, flipped=False)
    if residual is not None:
        out.add_(residual)
    return out.relu_() if relu and not within else out


def conv3x3_backward(
    grad, x, weights, out, counts, relu, need_x, need_weights, need_biases, need_taps, need_residual
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    if _few_pixels(x, weights, counts):
        needs = need_x, need_weights, need_biases, need_taps, need_residual
        return SPEC.backward.reference(grad, x, weights, out, counts, relu, *needs)
    g, d_biases, d_taps = _gate(grad, weights, out if relu else None, counts, need_biases, need_taps)
    d_x = x.new_empty(0)
    if need_x:
        d_x = _convolve(g, weights, [], [], [], counts, relu=False, flipped=True)
    d_weights = _weight_gradients(g, x, weights, counts) if need_weights else []
    return d_x, d_weights, d_biases, d_taps, residual_gradient(g, grad, need_residual)


def _gate(grad, weights, out, counts, need_biases, need_taps) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradient before the ReLU, channels-last, and its sums; without a ReLU, it is `grad`
    itself."""
    g = grad = grad.contiguous(memory_format=torch.channels_last)
    d_biases = [weight.new_empty(weight.shape[0]) for weight in weights] if need_biases else []
    d_taps = [weight.new_empty(weight.shape[0], 3, 3) for weight in weights] if need_taps else []
    if out is not None:
        out = out.contiguous(memory_format=torch.channels_last)
        g = empty_like(grad)
    if out is not None or need_biases or need_taps:
        _, n, height, width = grad.shape
        CPU.call(
            "conv3x3_gate", grad, gated=g if out is not None else None, grad=grad, out=out, d_biases=d_biases,
            d_taps=d_taps, counts=counts, tasks=len(counts), height=height, width=width, n=n,
        )  # fmt: skip
    return g, d_biases, d_taps


def _weight_gradients(g: Tensor, x: Tensor, weights: list[Tensor], counts: list[int]) -> list[Tensor]:
    x = x.contiguous(memory_format=torch.channels_last)
    given = [
        empty_like(weight) if count else torch.zeros_like(weight)
        for weight, count in zip(weights, counts, strict=True)
    ]
    d_weights = _one_layout(given)
    height, width = x.shape[2:]
    n, k = weights[0].shape[:2]
    CPU.call(
        "conv3x3_weight_gradient", x, d_weights=d_weights, x=x, grad=g, counts=counts, tasks=len(counts),
        height=height, width=width, k=k, n=n, **_strides(d_weights[0], flipped=False),
    )  # fmt: skip
    for mine, target in zip(d_weights, given, strict=True):
        if mine is not target:
            target.copy_(mine)
    return given


def pack(weight: Tensor) -> Tensor:
    """Transform a weight [K, C, 3, 3] to float32 [36, C * (K rounded up to 16) + 16]."""
    K, C = weight.shape[:2]
    (weight,) = _one_layout([weight])
    packed = weight.new_empty(_packed_shape(weight))
    strides = _strides(weight, flipped=False)
    CPU.call(
        "conv3x3_pack", weight, packed=[packed], weights=[weight], tasks=1, k=C, n=K, flipped=False, **strides
    )
    return packed


def _packed_shape(weight: Tensor) -> tuple[int, int]:
    K, C = weight.shape[:2]
    return 36, C * (-(-K // 16) * 16) + 16


def _is_packed(packed: Tensor, weight: Tensor) -> bool:
    return packed.shape == _packed_shape(weight) and packed.dtype == torch.float32 and packed.is_contiguous()


def _few_pixels(x: Tensor, weights: list[Tensor], counts: list[int]) -> bool:
    tasks = sum(count > 0 for count in counts)
    return x.shape[0] * x.shape[2] * x.shape[3] * _ELEMENTS_A_PIXEL < tasks * weights[0].shape[:2].numel()


def _one_layout(weights: list[Tensor]) -> list[Tensor]:
    """Return the weights such that all have the same strides, and a constant step from tap to tap."""
    strides = weights[0].stride()
    if strides[2] == 3 * strides[3] and all(weight.stride() == strides for weight in weights):
        return weights
    return [weight.contiguous() for weight in weights]


def _strides(weight: Tensor, flipped: bool) -> dict[str, int]:
    """Return the strides of the rows, columns and taps of a weight matrix, as the kernel names them."""
    n, k, _, tap = weight.stride()
    return {"stride_k": n if flipped else k, "stride_n": k if flipped else n, "stride_tap": tap}


def _convolve(x, weights, biases, tap_biases, packed, counts, *, relu: bool, flipped: bool) -> Tensor:
    """Compute the convolution by Winograd's algorithm, or with `flipped` the data gradient."""
    x = x.contiguous(memory_format=torch.channels_last)
    rows, k, height, width = x.shape
    n = weights[0].shape[1 if flipped else 0]
    out = empty((rows, n, height, width), x.dtype, torch.channels_last)
    weights = _one_layout(weights)
    CPU.call(
        "conv3x3", x, out=out, x=x, weights=weights, packed=packed, biases=_dense(biases),
        tap_biases=_dense(tap_biases), counts=counts, tasks=len(counts), height=height, width=width, k=k, n=n,
        relu=relu, flipped=flipped, **_strides(weights[0], flipped),
    )  # fmt: skip
    return out


def _dense(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]
