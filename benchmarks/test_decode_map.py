"""decode_map vs. the published end of the network: 1x1 head, x8 bilinear upsampling, the task's decoding,
for one task of an image (or of eight). The published network runs NCHW, and so does the baseline here; ours
gets channels-last features. `test_decode_map` is semantic segmentation (21 classes), the others
PASCAL-Context's other tasks.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmtl.metrics import normalise
from dmtl.ops.decode_map import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders

DECODED = {
    "argmax": lambda u: u.argmax(1),
    "softmax": lambda u: torch.sigmoid(u[:, 1].float() - u[:, 0].float()),
    "sigmoid": lambda u: u[:, 0].float().sigmoid(),
    "unit": lambda u: normalise(u.float(), 1e-4),
}


def arguments(size: Size, dtype: torch.dtype, contender: str, kind: str, classes: int) -> dict:
    layout = torch.contiguous_format if contender in ("eager", "compiled") else torch.channels_last
    x = torch.randn(size.images, size.channels, size.height, size.width, device=DEVICE)
    weight = size.channels**-0.5 * torch.randn(classes, size.channels, device=DEVICE)
    bias = torch.randn(classes, device=DEVICE)
    call = dict(x=x.to(dtype, memory_format=layout), weight=weight.to(dtype), bias=bias.to(dtype))
    return call | dict(kind=kind, size=(8 * size.height, 8 * size.width))


def eager(x, weight, bias, kind, size):
    logits = F.conv2d(x, weight[..., None, None], bias)
    return DECODED[kind](F.interpolate(logits, size, mode="bilinear", align_corners=False))


def run(bench, size, dtype, contender, kind, classes) -> None:
    call = arguments(SIZES[size], DTYPES[dtype], contender, kind, classes)
    pixels = 64 * call["x"].shape[0] * call["x"].shape[2] * call["x"].shape[3]
    written = {"argmax": 8, "unit": 12}.get(kind, 4) * pixels
    # The head's products, and three interpolations of each logit at the map's size (two operations each).
    flops = 2 * call["x"].numel() * classes + 6 * pixels * classes
    bench(SPEC, contender, call, eager, Work(flops=flops, bytes=call["x"].nbytes + written))


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_decode_map(bench, size, dtype, contender):
    run(bench, size, dtype, contender, "argmax", 21)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["published-1"])
def test_decode_map_human_parts(bench, size, dtype, contender):
    run(bench, size, dtype, contender, "argmax", 7)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["published-1"])
def test_decode_map_sal(bench, size, dtype, contender):
    run(bench, size, dtype, contender, "softmax", 2)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["published-1"])
def test_decode_map_normals(bench, size, dtype, contender):
    run(bench, size, dtype, contender, "unit", 3)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["published-1"])
def test_decode_map_edge(bench, size, dtype, contender):
    run(bench, size, dtype, contender, "sigmoid", 1)
