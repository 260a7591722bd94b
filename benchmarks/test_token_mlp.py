"""token_mlp on the tokens of all tasks, forward only and with gradients, vs. the published MLP's layers
in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.token_mlp import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders


def arguments(size: Size, dtype: torch.dtype, tracked: bool = False) -> dict:
    C, H = size.channels, 4 * size.channels

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, device=DEVICE)).to(dtype).requires_grad_(tracked)

    return dict(
        x=draw(size.rows, size.tokens, C),
        norm_weight=draw(C),
        norm_bias=draw(C),
        fc1_weight=draw(H, C, scale=C**-0.5),
        fc1_bias=draw(H),
        fc2_weight=draw(C, H, scale=H**-0.5),
        fc2_bias=draw(C),
    )


def eager(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    hidden = F.linear(F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias), fc1_weight, fc1_bias)
    return x + F.linear(F.gelu(hidden), fc2_weight, fc2_bias)


def flops(call: dict) -> float:
    """Count operations of the forward pass."""
    return 4 * call["x"].numel() * call["fc1_weight"].shape[0]


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_token_mlp(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype])
    bench(SPEC, contender, call, eager, Work(flops=flops(call)))


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["tiny", "published-1", "training-ragged"])
def test_token_mlp_with_gradients(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype], tracked=True)
    bench(SPEC, contender, call, eager, Work(flops=3 * flops(call)), backward=True)
