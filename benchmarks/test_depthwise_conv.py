"""depthwise_conv on layers of EfficientNet-Lite0, vs. the library's grouped convolution: NCHW as
published, in channels-last, and compiled."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.depthwise_conv import SPEC

from .harness import DEVICE, DTYPES, Work, contenders

CHANNELS_LAST = "eager-channels-last"


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
    published = contender in ("eager", "compiled")
    layout = torch.contiguous_format if published else torch.channels_last
    x = torch.randn(layer.B, layer.C, layer.H, layer.W, device=DEVICE)
    weight = torch.randn(layer.C, 1, layer.k, layer.k, device=DEVICE) / layer.k
    return dict(
        x=x.to(dtype, memory_format=layout).requires_grad_(tracked),
        weight=weight.to(dtype).requires_grad_(tracked),
        stride=layer.stride,
        padding=layer.k // 2 if layer.stride == 1 else (layer.k - 2) // 2,
    )


def eager(x, weight, stride, padding):
    """Convolve; symmetric padding is built in, TensorFlow's needs a padded copy."""
    if stride == 1:
        return F.conv2d(x, weight, padding=padding, groups=x.shape[1])
    padded = F.pad(x, (padding, weight.shape[-1] - 2 - padding) * 2)
    return F.conv2d(padded, weight, stride=stride, groups=x.shape[1])


def work(layer: Layer, call: dict, backward: bool = False) -> Work:
    """Count products of the forward pass, and as many for each gradient; maps are read and written once."""
    out = call["x"].nbytes // layer.stride**2
    products = 2 * layer.k**2 * call["x"].numel() // layer.stride**2
    passes = 3 if backward else 1
    return Work(flops=passes * products, bytes=passes * (call["x"].nbytes + out))


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LAYERS)
def test_depthwise_conv(bench, benchmark, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender)
    bench(SPEC, "eager" if contender == CHANNELS_LAST else contender, call, eager, work(LAYERS[size], call))
    benchmark.extra_info["contender"] = contender


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [name for name in LAYERS if "1x512x512" not in name])
def test_depthwise_conv_with_gradients(bench, benchmark, size, dtype, contender):
    call = arguments(LAYERS[size], DTYPES[dtype], contender, tracked=True)
    counted = work(LAYERS[size], call, backward=True)
    bench(SPEC, "eager" if contender == CHANNELS_LAST else contender, call, eager, counted, backward=True)
    benchmark.extra_info["contender"] = contender
