"""pointwise_conv on layers of EfficientNet-Lite0, vs. the library's 1x1 convolution: NCHW as published, in
channels-last, and compiled."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.pointwise_conv import SPEC

from .harness import CHANNELS_LAST, DEVICE, DTYPES, Work, contenders, layout


@dataclass(frozen=True)
class Layer:
    """A 1x1 convolution of the encoder: images, channels in, channels out, height, width."""

    B: int
    C: int
    K: int
    h: int
    w: int


LAYERS = {
    "tiny": Layer(1, 32, 16, 16, 16),
    "stage1-expand-8x128x160": Layer(8, 16, 96, 64, 80),
    "stage1-project-8x128x160": Layer(8, 96, 24, 32, 40),
    "stage4-expand-8x128x160": Layer(8, 112, 672, 8, 10),
    "stage5-project-8x128x160": Layer(8, 1152, 192, 4, 5),
}


def arguments(layer: Layer, dtype: torch.dtype, contender: str, tracked: bool = False) -> dict:
    x = torch.randn(layer.B, layer.C, layer.h, layer.w, device=DEVICE)
    weight = torch.randn(layer.K, layer.C, 1, 1, device=DEVICE) / layer.C**0.5
    return dict(
        x=x.to(dtype, memory_format=layout(contender)).requires_grad_(tracked),
        weight=weight.to(dtype).requires_grad_(tracked),
    )


def eager(x, weight):
    return F.conv2d(x, weight)


def work(layer: Layer, call: dict, backward: bool = False) -> Work:
    """Count products of the forward pass, and as many for each gradient; maps are read and written once."""
    products, passes = 2 * layer.K * call["x"].numel(), 3 if backward else 1
    return Work(flops=passes * products, bytes=passes * call["x"].nbytes * (layer.C + layer.K) // layer.C)


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LAYERS)
def test_pointwise_conv(bench, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender)
    bench(SPEC, contender, call, eager, work(LAYERS[size], call))


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LAYERS)
def test_pointwise_conv_with_gradients(bench, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender, tracked=True)
    bench(SPEC, contender, call, eager, work(LAYERS[size], call, backward=True), backward=True)
