"""upsample_add vs. the published composition: tokens to a grid, x4 interpolation, addition. The published
network runs NCHW, and so does the baseline here; ours gets channels-last maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.upsample_add import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders


def arguments(size: Size, dtype: torch.dtype, contender: str, tracked: bool = False) -> dict:
    layout = torch.contiguous_format if contender in ("eager", "compiled") else torch.channels_last
    skip = torch.randn(size.rows, size.channels, size.height, size.width, device=DEVICE)
    tokens = torch.randn(size.rows, size.tokens, size.channels, device=DEVICE)
    return dict(
        tokens=tokens.to(dtype).requires_grad_(tracked),
        skip=skip.to(dtype, memory_format=layout).requires_grad_(tracked),
        reduction=4,
    )


def eager(tokens, skip, reduction):
    grid = tokens.transpose(1, 2).unflatten(-1, (skip.shape[2] // reduction, skip.shape[3] // reduction))
    return F.interpolate(grid, scale_factor=reduction, mode="bilinear", align_corners=False) + skip


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_upsample_add(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype], contender)
    bench(SPEC, contender, call, eager, Work(bytes=2 * call["skip"].nbytes + call["tokens"].nbytes))


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["tiny", "published-1", "training-ragged"])
def test_upsample_add_with_gradients(bench, size, dtype, contender):
    """Time gradients. That of skip is the incoming gradient: nothing to compute or write."""
    call = arguments(SIZES[size], DTYPES[dtype], contender, tracked=True)
    work = Work(bytes=3 * call["skip"].nbytes + 2 * call["tokens"].nbytes)
    bench(SPEC, contender, call, eager, work, backward=True)
