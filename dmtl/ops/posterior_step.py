"""Take one reverse step (DiffusionMTL, eq. 5; Ho et al. 2020, eqs. 6-7).

Legend: B rows (samples), S steps of the schedule; x [B, ...] of any further shape and memory layout.

    x_{t-1} = c1 x0_hat + c2 x_t + s eps
    c1 = coef1_S[t_B],  c2 = coef2_S[t_B],  s = sigma_S[t_B], one triple per row

The tables decide what the step is: the ancestral posterior (c1, c2 its mean, s its standard deviation), or a
deterministic one (s = 0). The last step is (1, 0, 0), the identity on x0_hat. A row with s = 0 gets no noise
at all. `posterior_step_` does the same into x_t's memory, if nothing is recorded for a backward pass: two
maps pass through memory instead of three, and no fresh one is paged in.

Gradients:

    d x0_hat = c1 grad,    d x_t = c2 grad,    d eps = s grad

Numerics: as in q_sample (float32 arithmetic, one rounding at the end).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .arithmetic import wide_dtype
from .autograd import recorded
from .registry import Operator, OpSpec, add
from .rows import drawn_noise, per_row, scaled, stored_like
from .samples import sample_rows

_SCHEMA = (
    "(Tensor x0_hat, Tensor x_t, Tensor t_B, Tensor coef1_S, Tensor coef2_S, Tensor sigma_S, "
    "Tensor? noise, Tensor? key_B3, int step) -> Tensor"
)
_INPLACE_SCHEMA = (
    "(Tensor(a!) x_t, Tensor x0_hat, Tensor t_B, Tensor coef1_S, Tensor coef2_S, Tensor sigma_S, "
    "Tensor? noise, Tensor? key_B3, int step) -> ()"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor t_B, Tensor coef1_S, Tensor coef2_S, Tensor sigma_S, "
    "bool need_x0_hat, bool need_x_t, bool need_noise) -> (Tensor, Tensor, Tensor)"
)


def _reference(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> Tensor:
    wide = wide_dtype(x0_hat.dtype)
    mean = per_row(coef1_S, t_B, x0_hat) * x0_hat.to(wide) + per_row(coef2_S, t_B, x0_hat) * x_t.to(wide)
    eps = drawn_noise(x0_hat, noise, key_B3, step)
    if eps is not None:
        sigma = per_row(sigma_S, t_B, x0_hat)
        mean = torch.where(sigma == 0, mean, mean + sigma * eps)
    return stored_like(mean, x0_hat)


def _reference_inplace(x_t, x0_hat, *rest) -> None:
    x_t.copy_(_reference(x0_hat, x_t, *rest))


def _reference_backward(grad, t_B, coef1_S, coef2_S, sigma_S, need_x0_hat, need_x_t, need_noise):
    return (
        scaled(grad, t_B, coef1_S, need_x0_hat),
        scaled(grad, t_B, coef2_S, need_x_t),
        scaled(grad, t_B, sigma_S, need_noise),
    )


def _check_values(x, y, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step) -> None:
    checks.check_values("posterior_step", t_B, coef1_S.shape[0], key_B3)


def posterior_step(
    x0_hat: Tensor,
    x_t: Tensor,
    t_B: Tensor,
    coef1_S: Tensor,
    coef2_S: Tensor,
    sigma_S: Tensor,
    *,
    noise: Tensor | None = None,
    key_B3: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """Compute x_{t-1} from the predicted clean map and x_t, every row at its own time.

    Args:
        x0_hat: [B, ...] float32, bfloat16, float16 (or float64), any strides.
        x_t: like x0_hat.
        t_B: int64 [B], indices into the tables.
        coef1_S: float32 [S].
        coef2_S: float32 [S].
        sigma_S: float32 [S].
        noise: like x0_hat. Without noise and key_B3 none is added.
        key_B3: int64 [B, 3], rows (seed, task, sample) from which the noise is drawn together with `step`.
        step: 0 <= step < 65536.

    Returns:
        x_{t-1} like x0_hat (shape, dtype, layout). Differentiable once, in x0_hat, x_t and noise.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape or device; on the CPU also: t or a key is out of range.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "posterior_step"
    checks.data(op, "x0_hat", x0_hat)
    checks.like(op, "x_t", x_t, x0_hat, "x0_hat")
    checks.rows(op, "t_B", t_B, x0_hat)
    checks.tables(op, x0_hat, coef1_S=coef1_S, coef2_S=coef2_S, sigma_S=sigma_S)
    checks.noise_source(op, x0_hat, "x0_hat", noise, key_B3, step, needed=False)
    return _call(x0_hat, x_t, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)


def posterior_step_(
    x_t: Tensor,
    x0_hat: Tensor,
    t_B: Tensor,
    coef1_S: Tensor,
    coef2_S: Tensor,
    sigma_S: Tensor,
    *,
    noise: Tensor | None = None,
    key_B3: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """Compute `posterior_step` in place: x_t becomes x_{t-1}, to the same bits, and is returned.

    Arguments and errors are those of `posterior_step`; x0_hat and noise share no memory with x_t. Not
    differentiable: raises ValueError if a gradient would have to be recorded.
    """
    op = "posterior_step_"
    checks.data(op, "x_t", x_t)
    checks.like(op, "x0_hat", x0_hat, x_t, "x_t")
    checks.rows(op, "t_B", t_B, x_t)
    checks.tables(op, x_t, coef1_S=coef1_S, coef2_S=coef2_S, sigma_S=sigma_S)
    checks.noise_source(op, x_t, "x_t", noise, key_B3, step, needed=False)
    for name, x in (("x_t", x_t), ("x0_hat", x0_hat), ("noise", noise)):
        if torch.is_grad_enabled() and x is not None and x.requires_grad:
            checks.fail(op, name, "without a gradient to record", "one that requires a gradient")
    torch.ops.dmtl.posterior_step_(x_t, x0_hat, t_B, coef1_S, coef2_S, sigma_S, noise, key_B3, step)
    return x_t


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks.

    Given, drawn and no noise, other layouts, and a last step without noise.
    """
    coef1 = torch.linspace(1.0, 0.1, 7, device=device)
    tables = dict(coef1_S=coef1, coef2_S=1 - coef1, sigma_S=0.3 * (1 - coef1))
    cases = []
    for x0_hat, t_B, key_B3 in sample_rows(size, dtype, device):
        common: dict = dict(x0_hat=x0_hat, x_t=torch.randn_like(x0_hat), t_B=t_B) | tables
        cases += [common | dict(noise=torch.randn_like(x0_hat)), common | dict(key_B3=key_B3, step=2), common]
    return cases


SPEC = add(
    OpSpec(
        name="posterior_step",
        forward=Operator("posterior_step", _SCHEMA, _reference, check_values=_check_values),
        backward=Operator("posterior_step_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=posterior_step,
        differentiable=("x0_hat", "x_t", "noise"),
        samples=_samples,
        variants=(
            Operator("posterior_step_", _INPLACE_SCHEMA, _reference_inplace, check_values=_check_values),
        ),
    )
)
_call = recorded(SPEC)
