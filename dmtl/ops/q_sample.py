"""Add noise (DiffusionMTL, eq. 2; Ho et al. 2020, eq. 4).

Legend: B rows (samples), S steps of the schedule; x [B, ...] of any further shape and memory layout.

    x_t = a x_0 + b eps,    a = sqrt_abar_S[t_B],  b = sqrt_one_minus_abar_S[t_B], one pair per row

Gradients:

    d x_0 = a grad,    d eps = b grad

Numerics: float32, bfloat16 and float16 in and out (the output has x_0's dtype), arithmetic in float32, one
rounding at the end; float64 in the reference. eps is given, or drawn inside the kernel as `philox` defines
it (float32 normals).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .autograd import recorded
from .registry import Operator, OpSpec, add
from .rows import drawn_noise, per_row, scaled, stored_like
from .samples import sample_rows

_SCHEMA = (
    "(Tensor x0, Tensor t_B, Tensor sqrt_abar_S, Tensor sqrt_one_minus_abar_S, "
    "Tensor? noise, Tensor? key_B3, int step) -> Tensor"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor t_B, Tensor sqrt_abar_S, Tensor sqrt_one_minus_abar_S, "
    "bool need_x0, bool need_noise) -> (Tensor, Tensor)"
)


def _reference(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
    eps = drawn_noise(x0, noise, key_B3, step)
    assert eps is not None  # the checks want noise or a key
    wide = eps.dtype
    xt = per_row(sqrt_abar_S, t_B, x0) * x0.to(wide) + per_row(sqrt_one_minus_abar_S, t_B, x0) * eps
    return stored_like(xt, x0)


def _reference_backward(
    grad, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, need_x0, need_noise
) -> tuple[Tensor, Tensor]:
    return scaled(grad, t_B, sqrt_abar_S, need_x0), scaled(grad, t_B, sqrt_one_minus_abar_S, need_noise)


def _check_values(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> None:
    checks.check_values("q_sample", t_B, sqrt_abar_S.shape[0], key_B3)


def q_sample(
    x0: Tensor,
    t_B: Tensor,
    sqrt_abar_S: Tensor,
    sqrt_one_minus_abar_S: Tensor,
    *,
    noise: Tensor | None = None,
    key_B3: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """Noise every row of x0 to its own time.

    Args:
        x0: [B, ...] float32, bfloat16, float16 (or float64), any strides.
        t_B: int64 [B], indices into the tables.
        sqrt_abar_S: float32 [S].
        sqrt_one_minus_abar_S: float32 [S].
        noise: like x0; give either noise or key_B3.
        key_B3: int64 [B, 3], rows (seed, task, sample) from which the noise is drawn together with `step`.
        step: 0 <= step < 65536.

    Returns:
        x_t like x0 (shape, dtype, layout). Differentiable once, in x0 and noise.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device; on the CPU also: t or a key is out of range.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "q_sample"
    checks.data(op, "x0", x0)
    checks.rows(op, "t_B", t_B, x0)
    checks.tables(op, x0, sqrt_abar_S=sqrt_abar_S, sqrt_one_minus_abar_S=sqrt_one_minus_abar_S)
    checks.noise_source(op, x0, "x0", noise, key_B3, step, needed=True)
    return _call(x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks: given noise, drawn noise, other layouts."""
    cases = []
    for x0, t_B, key_B3 in sample_rows(size, dtype, device):
        abar = torch.linspace(0.99, 0.2, 7, device=device)
        common: dict = dict(x0=x0, t_B=t_B, sqrt_abar_S=abar.sqrt(), sqrt_one_minus_abar_S=(1 - abar).sqrt())
        cases.append(common | dict(noise=torch.randn_like(x0)))
        cases.append(common | dict(key_B3=key_B3, step=3))
    return cases


SPEC = add(
    OpSpec(
        name="q_sample",
        forward=Operator("q_sample", _SCHEMA, _reference, check_values=_check_values),
        backward=Operator("q_sample_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=q_sample,
        differentiable=("x0", "noise"),
        samples=_samples,
    )
)
_call = recorded(SPEC)


def normal(
    key_B3: Tensor, shape: tuple[int, ...], step: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the noise itself: standard normals [B, *shape] on key_B3's device, as `philox` defines them."""
    zero = torch.zeros((), dtype=dtype, device=key_B3.device).expand(key_B3.shape[0], *shape).contiguous()
    one = torch.ones(1, device=key_B3.device)
    t_B = torch.zeros(key_B3.shape[0], dtype=torch.int64, device=key_B3.device)
    return q_sample(zero, t_B, torch.zeros_like(one), one, key_B3=key_B3, step=step)
