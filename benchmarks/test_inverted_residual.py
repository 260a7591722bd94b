"""inverted_residual on blocks of EfficientNet-Lite0, vs. the library's three convolutions: NCHW as
published, in channels-last, and compiled."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from dmtl import ops
from dmtl.ops.inverted_residual import SPEC, pack_inverted_residual
from dmtl.ops.registry import BACKENDS

from .harness import CHANNELS_LAST, DEVICE, DTYPES, Work, contenders, layout
from .plain import depthwise_convolved


@dataclass(frozen=True)
class Block:
    """A block of the encoder: images, channels, height, width, output channels, the filter's side, stride."""

    B: int
    C: int
    H: int
    W: int
    N: int
    k: int
    stride: int


BLOCKS = {
    "tiny": Block(1, 16, 8, 8, 16, 3, 1),
    "stage1-1x128x160": Block(1, 16, 64, 80, 24, 3, 2),
    "stage5-1x128x160": Block(1, 192, 4, 5, 192, 5, 1),
    "stage1-1x512x512": Block(1, 16, 256, 256, 24, 3, 2),
    "stage2-1x512x512": Block(1, 40, 64, 64, 40, 5, 1),
    "stage4-1x512x512": Block(1, 112, 32, 32, 112, 5, 1),
    "stage2-8x512x512": Block(8, 40, 64, 64, 40, 5, 1),
}


def arguments(block: Block, dtype: torch.dtype, contender: str) -> dict:
    """Return arguments of a block that expands six times."""
    C, E, N, k = block.C, 6 * block.C, block.N, block.k

    def layer(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        fan = shape[1] * shape[-1] if len(shape) == 4 else shape[1]
        weight = torch.randn(shape, device=DEVICE) / fan**0.5
        return weight.to(dtype), torch.randn(shape[0], device=DEVICE).to(dtype)

    call = dict(
        x=torch.randn(block.B, C, block.H, block.W, device=DEVICE).to(dtype, memory_format=layout(contender)),
        expand=layer(E, C),
        depthwise=layer(E, 1, k, k),
        project=layer(N, E),
        stride=block.stride,
        padding=k // 2 if block.stride == 1 else (k - 2) // 2,
        residual=block.stride == 1 and N == C,
        high=6.0,
    )
    if contender in BACKENDS:
        with ops.use_backend(inverted_residual=contender):  # once, as inference does
            call["packed"] = pack_inverted_residual(call["expand"], call["depthwise"], call["project"])
    return call


def eager(x, expand, depthwise, project, stride, padding, residual, high, packed=None):
    """Convolve three times."""
    y = F.conv2d(x, expand[0][:, :, None, None], expand[1]).clamp_(0, high)
    y = depthwise_convolved(y, *depthwise, stride, padding).clamp_(0, high)
    y = F.conv2d(y, project[0][:, :, None, None], project[1])
    return y.add_(x) if residual else y


def work(block: Block, call: dict) -> Work:
    """Count products of the three layers; x is read and the result written once."""
    pixels, E = block.B * block.H * block.W, 6 * block.C
    out_pixels = pixels // block.stride**2
    flops = 2 * E * (pixels * block.C + out_pixels * (block.k**2 + block.N))
    return Work(flops=flops, bytes=call["x"].nbytes + out_pixels * block.N * call["x"].itemsize)


@pytest.mark.parametrize("contender", contenders(SPEC, CHANNELS_LAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", BLOCKS)
def test_inverted_residual(bench, size, dtype, contender):
    call = arguments(BLOCKS[size], DTYPES[dtype], contender)
    bench(SPEC, contender, call, eager, work(BLOCKS[size], call))
