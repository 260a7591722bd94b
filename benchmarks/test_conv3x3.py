"""conv3x3 with bias and ReLU on the maps of all tasks, vs. torch's convolution one task after another: as
published (NCHW), in channels-last, and compiled. Rates count direct convolution, so a Winograd kernel may
exceed the ceiling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmtl import ops
from dmtl.ops.conv3x3 import SPEC
from dmtl.ops.registry import BACKENDS

from .harness import CHANNELS_LAST, DEVICE, DTYPES, SIZES, Size, Work, contenders, layout


def arguments(size: Size, dtype: torch.dtype, memory_format: torch.memory_format) -> dict:
    C = size.channels

    def draw(*shape: int) -> torch.Tensor:
        value = torch.randn(shape, device=DEVICE).to(dtype)
        return value.contiguous(memory_format=memory_format) if len(shape) == 4 else value

    return dict(
        x=draw(size.rows, C, size.height, size.width),
        weights=[draw(C, C, 3, 3) / (9 * C) ** 0.5 for _ in size.counts],
        biases=[draw(C) for _ in size.counts],
        counts=list(size.counts),
        relu=True,
    )


def eager(x, weights, biases, counts, relu):
    outs = []
    for rows, weight, bias in zip(x.split(counts), weights, biases, strict=True):
        if len(rows):
            outs.append(torch.relu(F.conv2d(rows, weight, bias, padding=1)))
    return outs


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_conv3x3(bench, size, dtype, contender):
    shape = SIZES[size]
    call = arguments(shape, DTYPES[dtype], layout(contender))
    if contender in BACKENDS and DTYPES[dtype] == torch.float32:
        with ops.use_backend(conv3x3=contender):  # once, as inference does
            call["packed"] = [ops.pack_conv3x3(weight) for weight in call["weights"]]
    work = Work(flops=2 * 9 * shape.channels**2 * shape.height * shape.width * shape.rows)
    bench(SPEC, contender, call, eager, work)
