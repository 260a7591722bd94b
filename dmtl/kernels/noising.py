"""What the adapters of the noising ops share: the ops in terms of two kernels, and dense tensors for these.

    noising    out = coef_x[t] x + coef_y[t] y + coef_noise[t] eps
    scaling    out_i = table_i[t] grad

Kernels want a row (sample) dense: in logical order, or as channels-last pixels where the kernel understands
that. Everything else goes through a dense copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dmtl.kernels.native import Native
from dmtl.runtime.memory import empty_like


@dataclass
class NoisingCall:
    """Arguments of the noising kernel."""

    x: Tensor
    y: Tensor | None
    t_B: Tensor
    coef_x: Tensor
    coef_y: Tensor | None
    coef_noise: Tensor
    noise: Tensor | None
    key_B3: Tensor | None
    step: int

    def dense(self, out: Tensor | None = None) -> tuple[Tensor, Tensor, bool]:
        """Make every argument dense in place. Returns (out, target, channels_last).

        `out` is the given one, which may be an argument, or fresh with the strides of empty_like(x), as the
        op promises; the kernel writes `target`, which is `out` or else has to be copied there.
        """
        out = empty_like(self.x) if out is None else out
        last = _channels_last(self.x) and _channels_last(out)
        memory_format = torch.channels_last if last else torch.contiguous_format
        target = out if last or _writable_rows(out) else torch.empty_like(out, memory_format=memory_format)
        for name in ("x", "y", "noise"):
            z = getattr(self, name)
            if z is not None and (last or not _dense_rows(z)):
                setattr(self, name, z.contiguous(memory_format=memory_format))
        for name in ("t_B", "coef_x", "coef_y", "coef_noise", "key_B3"):
            z = getattr(self, name)
            if z is not None:
                setattr(self, name, z.contiguous())
        return out, target, last


def _dense_rows(x: Tensor) -> bool:
    """Rows contiguous in logical order, whatever lies between them."""
    return x.is_contiguous() or (x.dim() > 1 and x.shape[0] > 0 and x[0].is_contiguous())


def _writable_rows(x: Tensor) -> bool:
    """Dense rows that do not overlap."""
    return _dense_rows(x) and (x.shape[0] < 2 or x.stride(0) >= x[0].numel())


def _channels_last(x: Tensor) -> bool:
    """[B, C, H, W] stored as [B, H, W, C], so that four neighbouring pixels share a Philox block."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and x.shape[2] * x.shape[3] % 4 == 0


@dataclass
class ScalingCall:
    """Arguments of the scaling kernel, for the needed i."""

    grad: Tensor
    t_B: Tensor
    tables: tuple[Tensor, ...]
    needed: tuple[bool, ...]

    def dense(self) -> tuple[list[Tensor], list[Tensor]]:
        """Make the arguments dense in place; (outs, targets) as in `NoisingCall`, empty tensors where nothing
        is needed."""
        grad = self.grad
        outs = [torch.empty_like(grad) if need else grad.new_empty(0) for need in self.needed]
        self.t_B = self.t_B.contiguous()
        self.tables = tuple(table.contiguous() for table in self.tables)
        if grad.numel() == 0 or not any(self.needed):
            return outs, outs
        # Scaling does not care for the order inside a row: any dense layout that input and output share will
        # do.
        alike = grad.stride() == outs[self.needed.index(True)].stride()
        if alike and grad.stride(0) * grad.shape[0] == grad.numel():
            return outs, outs
        self.grad = grad.contiguous()
        return outs, [
            torch.empty_like(self.grad) if need else out for need, out in zip(self.needed, outs, strict=True)
        ]


class NoisingOps(ABC):
    """The noising ops and their backward passes, on a backend's two kernels."""

    @abstractmethod
    def launch_noising(self, op: str, call: NoisingCall, target: Tensor, channels_last: bool) -> None:
        """Run the noising kernel of an op."""

    @abstractmethod
    def launch_scaling(self, op: str, call: ScalingCall, targets: list[Tensor]) -> None:
        """Run the scaling kernel of an op."""

    def q_sample(self, x0, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, noise, key_B3, step) -> Tensor:
        call = NoisingCall(x0, None, t_B, sqrt_abar_S, None, sqrt_one_minus_abar_S, noise, key_B3, step)
        return self._noising("q_sample", call)

    def q_sample_backward(self, grad, t_B, sqrt_abar_S, sqrt_one_minus_abar_S, *needed) -> tuple[Tensor, ...]:
        return self._scaling(
            "q_sample_backward", ScalingCall(grad, t_B, (sqrt_abar_S, sqrt_one_minus_abar_S), needed)
        )

    def posterior_step(self, *args) -> Tensor:
        return self._noising("posterior_step", NoisingCall(*args))

    def posterior_step_(self, x_t, x0_hat, *rest) -> None:
        self._noising("posterior_step", NoisingCall(x0_hat, x_t, *rest), out=x_t)

    def posterior_step_backward(self, grad, t_B, coef1_S, coef2_S, sigma_S, *needed) -> tuple[Tensor, ...]:
        return self._scaling(
            "posterior_step_backward", ScalingCall(grad, t_B, (coef1_S, coef2_S, sigma_S), needed)
        )

    def _noising(self, op: str, call: NoisingCall, out: Tensor | None = None) -> Tensor:
        if call.x.numel() == 0:
            return torch.empty_like(call.x) if out is None else out
        out, target, last = call.dense(out)
        self.launch_noising(op, call, target, last)
        return out if target is out else out.copy_(target)

    def _scaling(self, op: str, call: ScalingCall) -> tuple[Tensor, ...]:
        outs, targets = call.dense()
        if call.grad.numel() and any(call.needed):
            self.launch_scaling(op, call, targets)
        return tuple(
            out if target is out else out.copy_(target) for out, target in zip(outs, targets, strict=True)
        )


@dataclass(frozen=True)
class NativeNoising(NoisingOps):
    """The noising ops by the native kernels."""

    native: Native

    def launch_noising(self, op: str, call: NoisingCall, target: Tensor, channels_last: bool) -> None:
        x, y, noise = call.x, call.y, call.noise
        self.native.call(
            op, x,
            out=target, x=x, y=y, noise=noise, key=call.key_B3, t=call.t_B,
            coef_x=call.coef_x, coef_y=call.coef_y, coef_noise=call.coef_noise,
            batch=x.shape[0], count=x[0].numel(), channels=x.shape[1] if channels_last else 0,
            stride_out=target.stride(0), stride_x=x.stride(0),
            stride_y=0 if y is None else y.stride(0), stride_noise=0 if noise is None else noise.stride(0),
            table_size=call.coef_x.shape[0], step=call.step,
        )  # fmt: skip

    def launch_scaling(self, op: str, call: ScalingCall, targets: list[Tensor]) -> None:
        grad, count = call.grad, call.grad[0].numel()
        self.native.call(
            op, grad,
            out=[out if need else None for out, need in zip(targets, call.needed, strict=True)],
            table=call.tables, grad=grad, t=call.t_B, batch=grad.shape[0], count=count,
            stride_out=count, stride_grad=count, table_size=call.tables[0].shape[0],
        )  # fmt: skip
