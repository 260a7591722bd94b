"""q_sample with noise drawn inside, vs. torch doing the same with randn_like (eager and compiled)."""

from __future__ import annotations

import pytest
import torch

from dmtl.ops.q_sample import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders


def arguments(size: Size, dtype: torch.dtype) -> dict:
    """Return rows of maps with their times, and keys for the noise."""
    rows = size.rows
    shape = (rows, size.channels, size.height, size.width)
    x = torch.randn(shape, device=DEVICE).to(dtype, memory_format=torch.channels_last)
    t_B = torch.arange(rows, device=DEVICE) % 4
    key_B3 = torch.tensor([[1, 2, row] for row in range(rows)], device=DEVICE)
    return dict(x0=x, t_B=t_B, key_B3=key_B3)


def eager(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, key_B3):
    shape = (-1, 1, 1, 1)
    a, b = (table[t_B].to(x0.dtype).reshape(shape) for table in (sqrt_abar_S, sqrt_one_minus_abar_S))
    return a * x0 + b * torch.randn_like(x0)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_q_sample(bench, size, dtype, contender):
    abar = torch.linspace(0.999, 0.9, 4, device=DEVICE)
    call = arguments(SIZES[size], DTYPES[dtype]) | dict(
        sqrt_abar_S=abar.sqrt(), sqrt_one_minus_abar_S=(1 - abar).sqrt()
    )
    bench(SPEC, contender, call, eager, Work(bytes=2 * call["x0"].nbytes))
