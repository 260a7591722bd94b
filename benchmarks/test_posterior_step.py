"""posterior_step with noise drawn inside, beside torch doing the same with randn_like (eager and
compiled)."""

from __future__ import annotations

import pytest
import torch

from dmtl.ops.posterior_step import SPEC

from .noising import CASES, DEVICE, DTYPES, arguments, contenders, prepared, shape_of


def eager(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, key_B3):
    c1, c2, s = (table[t_B].to(x_t.dtype).reshape(-1, 1, 1, 1) for table in (coef1_S, coef2_S, sigma_S))
    return c1 * x0_hat + c2 * x_t + s * torch.randn_like(x_t)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_posterior_step(time_op, benchmark, size, dtype, contender):
    benchmark.group = f"posterior_step {size} {dtype}"
    coef1 = torch.linspace(0.6, 0.2, 4, device=DEVICE)
    call = arguments(shape_of(size), DTYPES[dtype], ("x0_hat", "x_t"))
    call |= dict(coef1_S=coef1, coef2_S=1 - coef1, sigma_S=0.1 * coef1)
    time_op(prepared(SPEC, contender, eager, call, DTYPES[dtype]), call["x_t"].numel())
