"""Express the noising operators by two kernels, and make tensors dense for these:

    noising    out = coef_x[t] x + coef_y[t] y + coef_noise[t] eps
    scaling    out_i = table_i[t] grad

Kernels want a row (sample) dense: in logical order, or as channels-last pixels where the kernel understands
that. Everything else goes through a dense copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmtl.kernels.native import Native
from dmtl.runtime.memory import empty_like


def _dense_rows(x: Tensor) -> bool:
    """Return rows that are contiguous in logical order, with any gaps between them."""
    return x.is_contiguous() or (x.dim() > 1 and x.shape[0] > 0 and x[0].is_contiguous())


def _writable_rows(x: Tensor) -> bool:
    """Return dense rows that do not overlap."""
    return _dense_rows(x) and (x.shape[0] < 2 or x.stride(0) >= x[0].numel())


def _channels_last(x: Tensor) -> bool:
    """Return [B, C, H, W] stored as [B, H, W, C], so that four neighbouring pixels share a Philox block."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and x.shape[2] * x.shape[3] % 4 == 0


@dataclass(frozen=True)
class NoisingOps:
    """The noising operators and their backward passes, on a backend's two kernels.

    launch_noising(op, out, x, y, noise, t_B, coef_x, coef_y, coef_noise, key_B3, step, channels_last); y with
    its coefficients, noise and key_B3 may be None.
    launch_scaling(op, outs, grad, t_B, tables); an out that is not needed is None.
    """

    launch_noising: Callable[..., None]
    launch_scaling: Callable[..., None]

    def q_sample(self, x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
        tables = sqrt_abar_S, None, sqrt_one_minus_abar_S
        return self._noising("q_sample", None, x0, None, t_B, *tables, noise, key_B3, step)

    def q_sample_backward(self, grad, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, *needed) -> tuple[Tensor, ...]:
        return self._scaling("q_sample_backward", grad, t_B, (sqrt_abar_S, sqrt_one_minus_abar_S), needed)

    def posterior_step(self, *args) -> Tensor:
        return self._noising("posterior_step", None, *args)

    def posterior_step_(self, x_t, x0_hat, *rest) -> None:
        self._noising("posterior_step", x_t, x0_hat, x_t, *rest)

    def posterior_step_backward(self, grad, t_B, coef1_S, coef2_S, sigma_S, *needed) -> tuple[Tensor, ...]:
        return self._scaling("posterior_step_backward", grad, t_B, (coef1_S, coef2_S, sigma_S), needed)

    def _noising(self, op, out, x, y, t_B, coef_x, coef_y, coef_noise, noise, key_B3, step) -> Tensor:
        """Write `out`, which may be an argument (None: fresh, with the strides of empty_like(x))."""
        out = empty_like(x) if out is None else out
        if x.numel() == 0:
            return out
        last = _channels_last(x) and _channels_last(out)
        memory_format = torch.channels_last if last else torch.contiguous_format
        target = out if last or _writable_rows(out) else torch.empty_like(out, memory_format=memory_format)
        x, y, noise = (
            z if z is None or (not last and _dense_rows(z)) else z.contiguous(memory_format=memory_format)
            for z in (x, y, noise)
        )
        small = (z if z is None else z.contiguous() for z in (t_B, coef_x, coef_y, coef_noise, key_B3))
        self.launch_noising(op, target, x, y, noise, *small, step, last)
        return out if target is out else out.copy_(target)

    def _scaling(self, op, grad, t_B, tables, needed) -> tuple[Tensor, ...]:
        outs = [torch.empty_like(grad) if need else grad.new_empty(0) for need in needed]
        if grad.numel() == 0 or not any(needed):
            return tuple(outs)
        # Scaling does not care for the order inside a row: any dense layout that input and output share will
        # do.
        alike = grad.stride() == outs[needed.index(True)].stride()
        if not alike or grad.stride(0) * grad.shape[0] != grad.numel():
            grad = grad.contiguous()
        targets = [
            None if not need else out if out.stride() == grad.stride() else torch.empty_like(grad)
            for out, need in zip(outs, needed, strict=True)
        ]
        self.launch_scaling(
            op, targets, grad, t_B.contiguous(), tuple(table.contiguous() for table in tables)
        )
        return tuple(
            out if target is None or target is out else out.copy_(target)
            for out, target in zip(outs, targets, strict=True)
        )


def native_noising(native: Native) -> NoisingOps:
    """Return the noising operators, computed by the native kernels."""

    def launch_noising(
        op, out, x, y, noise, t_B, coef_x, coef_y, coef_noise, key_B3, step, channels_last
    ) -> None:
        native.call(
            op, x, out=out, x=x, y=y, noise=noise, key=key_B3, t=t_B,
            coef_x=coef_x, coef_y=coef_y, coef_noise=coef_noise,
            batch=x.shape[0], count=x[0].numel(), channels=x.shape[1] if channels_last else 0,
            stride_out=out.stride(0), stride_x=x.stride(0),
            stride_y=0 if y is None else y.stride(0), stride_noise=0 if noise is None else noise.stride(0),
            table_size=coef_x.shape[0], step=step,
        )  # fmt: skip

    def launch_scaling(op, outs, grad, t_B, tables) -> None:
        count = grad[0].numel()
        native.call(
            op, grad, out=outs, table=tables, grad=grad, t=t_B, batch=grad.shape[0], count=count,
            stride_out=count, stride_grad=count, table_size=tables[0].shape[0],
        )  # fmt: skip

    return NoisingOps(launch_noising, launch_scaling)
