"""depthwise_conv on layers of EfficientNet-Lite0, vs. the library's grouped convolution: NCHW as
published, in channels-last, and compiled."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dmtl.ops.depthwise_conv import SPEC

from .harness import CHANNELS_LAST, DEVICE, DTYPES, Work, contenders, layout
from .plain import depthwise_convolved


@dataclass(frozen=True)
class Layer:
    """A depthwise convolution of the encoder: images, channels, height, width, the filter's side, stride."""

    B: int
    C: int
    H: int
    W: int
    k: int
    stride: int


LAYERS = {
    "tiny": Layer(1, 32, 16, 16, 3, 1),
    "stage0-8x128x160": Layer(8, 32, 64, 80, 3, 1),
    "stage1-8x128x160": Layer(8, 96, 64, 80, 3, 2),
    "stage2-8x128x160": Layer(8, 240, 16, 20, 5, 1),
    "stage5-8x128x160": Layer(8, 1152, 4, 5, 5, 1),
    "stage1-1x512x512": Layer(1, 96, 256, 256, 3, 2),
    "stage4-1x512x512": Layer(1, 672, 32, 32, 5, 1),
}


def arguments(layer: Layer, dtype: torch.dtype, contender: str, tracked: bool = False) -> dict:
    x = torch.randn(layer.B, layer.C, layer.H, layer.W, device=DEVICE)
    weight = torch.randn(layer.C, 1, layer.k, layer.k, device=DEVICE) / layer.k
    return dict(
        x=x.to(dtype, memory_format=layout(contender)).requires_grad_(tracked),
        weight=weight.to(dtype).requires_grad_(tracked),
        stride=layer.stride,
        padding=layer.k // 2 if layer.stride == 1 else (layer.k - 2) // 2,
    )


def eager(x, weight, stride, padding):
    return depthwise_convolved(x, weight, None, stride, padding)


def work(layer: Layer, call: dict, backward: bool = False) -> Work:
    """Count products of the forward pass, and as many for each gradient; maps are read and written once."""
    out = call["x"].nbytes // layer.stride**2
    products = 2 * layer.k**2 * call["x"].numel() // layer.stride**2
    passes = 3 if backward else 1
    return Work(flops=passes * products, bytes=passes * (call["x"].nbytes + out))


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LAYERS)
def test_depthwise_conv(bench, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender)
    bench(SPEC, contender, call, eager, work(LAYERS[size], call))


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [name for name in LAYERS if "1x512x512" not in name])
def test_depthwise_conv_with_gradients(bench, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender, tracked=True)
    counted = work(LAYERS[size], call, backward=True)
    bench(SPEC, contender, call, eager, counted, backward=True)
