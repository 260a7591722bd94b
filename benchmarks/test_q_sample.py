"""q_sample with noise drawn inside, beside torch doing the same with randn_like (eager and compiled)."""

from __future__ import annotations

import pytest
import torch

from dmtl.ops.q_sample import SPEC

from .noising import CASES, DEVICE, DTYPES, arguments, contenders, prepared, shape_of


def eager(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, key_B3):
    shape = (-1, 1, 1, 1)
    a, b = (
        sqrt_abar_S[t_B].to(x0.dtype).reshape(shape),
        sqrt_one_minus_abar_S[t_B].to(x0.dtype).reshape(shape),
    )
    return a * x0 + b * torch.randn_like(x0)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_q_sample(time_op, benchmark, size, dtype, contender):
    benchmark.group = f"q_sample {size} {dtype}"
    abar = torch.linspace(0.999, 0.9, 4, device=DEVICE)
    call = arguments(shape_of(size), DTYPES[dtype], ("x0",)) | dict(
        sqrt_abar_S=abar.sqrt(), sqrt_one_minus_abar_S=(1 - abar).sqrt()
    )
    time_op(prepared(SPEC, contender, eager, call, DTYPES[dtype]), call["x0"].numel())
