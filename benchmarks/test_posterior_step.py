"""posterior_step with noise drawn inside, vs. torch doing the same with randn_like (eager and compiled)."""

from __future__ import annotations

import pytest
import torch

from dmtl.ops.posterior_step import SPEC

from .harness import DEVICE, DTYPES, SIZES, Work, contenders
from .test_q_sample import arguments


def eager(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, key_B3):
    c1, c2, sigma = (table[t_B].to(x_t.dtype).reshape(-1, 1, 1, 1) for table in (coef1_S, coef2_S, sigma_S))
    return c1 * x0_hat + c2 * x_t + sigma * torch.randn_like(x_t)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_posterior_step(bench, size, dtype, contender):
    call = arguments(SIZES[size], DTYPES[dtype])
    x_t = call.pop("x0")
    tables = dict(zip(("coef1_S", "coef2_S", "sigma_S"), torch.rand(3, 4, device=DEVICE) + 0.1, strict=True))
    call |= dict(x0_hat=torch.randn_like(x_t), x_t=x_t) | tables
    bench(SPEC, contender, call, eager, Work(bytes=3 * x_t.nbytes))
