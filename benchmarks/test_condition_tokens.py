"""condition_tokens vs. the published composition: concatenation, 3x3 convolution, x0.25 interpolation,
tokens, block 0's LayerNorm and query projection. Five tasks as on PASCAL-Context; the published network runs
NCHW, and so does the baseline here, ours gets channels-last maps. Work is counted as ours: the folded product
and the projection.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops import fold_reduction
from dmtl.ops.condition_tokens import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders

CHANNELS = (21, 7, 2, 3, 1)


def arguments(
    size: Size, dtype: torch.dtype, contender: str, tracked: bool = False
) -> tuple[dict, torch.Tensor]:
    """Return a call and the 3x3 weight that its weight is folded from."""
    layout = torch.contiguous_format if contender in ("eager", "compiled") else torch.channels_last
    width = size.channels
    weight3 = (0.06 * torch.randn(width, sum(CHANNELS), 3, 3, device=DEVICE)).to(dtype)
    maps = [torch.randn(size.images, c, size.height, size.width, device=DEVICE) for c in CHANNELS]
    call = dict(maps=[m.to(dtype, memory_format=layout) for m in maps], weight=fold_reduction(weight3, 4))
    for name, shape in dict(
        bias=width, norm_weight=width, norm_bias=width, query_weight=(width, width)
    ).items():
        call[name] = (0.1 * torch.randn(shape, device=DEVICE)).to(dtype)
    for leaf in (
        (*call["maps"], *(x for x in call.values() if isinstance(x, torch.Tensor))) if tracked else ()
    ):
        leaf.requires_grad_()
    return call | dict(reduction=4), weight3


def eager(maps, weight, bias, norm_weight, norm_bias, query_weight, reduction, weight3):
    x = F.conv2d(torch.cat(maps, 1), weight3, bias, padding=1)
    x = F.interpolate(x, scale_factor=1 / reduction, mode="bilinear", align_corners=False)
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    return tokens, F.linear(F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias), query_weight)


def work(size: Size, itemsize: int) -> Work:
    rows, width, depth = size.images * size.tokens, size.channels, 16 * sum(CHANNELS)
    products = 2 * rows * width * (depth + width)
    return Work(flops=products, bytes=itemsize * (rows * (depth + 2 * width) + width * (depth + width)))


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_condition_tokens(bench, size, dtype, contender):
    call, weight3 = arguments(SIZES[size], DTYPES[dtype], contender)
    bench(SPEC, contender, call, partial(eager, weight3=weight3), work(SIZES[size], DTYPES[dtype].itemsize))
