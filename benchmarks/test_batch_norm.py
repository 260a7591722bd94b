"""batch_norm with its clamp on layers of EfficientNet-Lite0 in a training step.

Compared with the library's batch norm and clamp: NCHW as published, in channels-last, and compiled.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.batch_norm import SPEC

from .harness import CHANNELS_LAST, DEVICE, DTYPES, Work, contenders, layout

LAYERS = {  # images, channels, height, width
    "tiny": (1, 32, 16, 16),
    "stage1-8x128x160": (8, 96, 64, 80),
    "stage2-8x128x160": (8, 144, 32, 40),
    "stage5-8x128x160": (8, 1152, 4, 5),
}


def arguments(shape: tuple[int, ...], dtype: torch.dtype, contender: str, tracked: bool = False) -> dict:
    x = torch.randn(shape, device=DEVICE).to(dtype, memory_format=layout(contender)).requires_grad_(tracked)
    weight, bias = (torch.rand(shape[1], device=DEVICE).requires_grad_(tracked) for _ in range(2))
    return dict(x=x, weight=weight, bias=bias, eps=1e-3, low=0.0, high=6.0)


def eager(x, weight, bias, eps, low, high):
    """Compute only the map: the library does not return mean and deviation."""
    out = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return out if math.isinf(low) else out.clamp(low, high)


def work(call: dict, backward: bool = False) -> Work:
    """Count x read twice and the map written; backward, x and the gradient read twice and d_x written."""
    return Work(flops=0, bytes=call["x"].nbytes * (8 if backward else 3))


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LAYERS)
def test_batch_norm_with_gradients(bench, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender, tracked=True)
    counted = work(call, backward=True)
    bench(SPEC, contender, call, eager, counted, backward=True)
