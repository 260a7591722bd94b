"""noisy_tokens vs. the published composition: the addition of the time embedding, x0.25 interpolation,
tokens made contiguous. The published network runs NCHW, and so does the baseline here; ours gets
channels-last maps.

`test_noisy_tokens_alone` is the call of MTDNet: the embedding is in the convolution's bias, and only tokens
are computed.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.noisy_tokens import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders


def arguments(size: Size, dtype: torch.dtype, contender: str, tracked: bool = False) -> dict:
    layout = torch.contiguous_format if contender in ("eager", "compiled") else torch.channels_last
    x = torch.randn(size.rows, size.channels, size.height, size.width, device=DEVICE)
    x = x.to(dtype, memory_format=layout).requires_grad_(tracked)
    bias = torch.randn(size.channels, device=DEVICE).to(dtype).requires_grad_(tracked)
    return dict(x=x, bias=bias, reduction=4)


def eager(x, reduction, bias=None):
    skip = x if bias is None else x + bias[None, :, None, None]
    small = F.interpolate(skip, scale_factor=1 / reduction, mode="bilinear", align_corners=False)
    return skip, small.flatten(2).transpose(1, 2).contiguous()


def map_and_tokens(call: dict) -> int:
    """Count the bytes of a map and of its tokens."""
    return call["x"].nbytes + call["x"].nbytes // 16


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_noisy_tokens(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype], contender)
    bench(SPEC, contender, call, eager, Work(bytes=map_and_tokens(call) + call["x"].nbytes))


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_noisy_tokens_alone(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype], contender)
    del call["bias"]
    bench(SPEC, contender, call, eager, Work(bytes=call["x"].nbytes // 4 + call["x"].nbytes // 16))


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["tiny", "published-1", "training-ragged"])
def test_noisy_tokens_with_gradients(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype], contender, tracked=True)
    work = Work(bytes=2 * (map_and_tokens(call) + call["x"].nbytes))
    bench(SPEC, contender, call, eager, work, backward=True)
