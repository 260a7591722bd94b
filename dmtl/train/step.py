"""Run optimiser steps, which never wait for a GPU.

The gradients of micro-batches are accumulated and then clipped. If a loss or gradient is not finite, the step
changes nothing: the optimiser's kernel reads a flag on the device. The host gets the outcome from `read`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dmtl.data.loading.loader import Batch
from dmtl.errors import ConfigError, one_line
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.nn.efficientnet import EfficientNetLite
from dmtl.nn.precision import training_precision
from dmtl.runtime import cores
from dmtl.runtime.distributed import World, any_rank, gather, total
from dmtl.runtime.memory import is_out_of_memory, keep_freed, return_freed
from dmtl.train import distributed
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.config import RunConfig
from dmtl.train.loss import PairLosses

_LARGE = 64 << 20
"""Bytes of parameters above which a step on a CPU returns freed memory to the system. At the published width,
this lowers the peak by 4 %."""


@dataclass(frozen=True)
class Skipped:
    """A step that changed nothing.

    Attributes:
        step: number of the step.
        reason: what was not finite.
        pairs: task -> ids of the samples whose loss is not finite. If there are none, because only the
            gradient or an extra loss is not finite: all labelled samples of the step.
    """

    step: int
    reason: str
    pairs: dict[str, list[str]]


@dataclass
class Report:
    """The result of `Step.read`: values of the last step, and the steps skipped since the previous call."""

    values: dict[str, float] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class _Taken:
    """The outcome of a step, on the device."""

    step: int
    ids: list[str]
    present: dict[str, Tensor]
    losses: PairLosses
    values: dict[str, Tensor]  # logged values of this process
    norms: dict[str, Tensor]
    bad: Tensor  # bool, agreed by all processes


_FEW_THREADS = 4  # up to which torch's operators may have one thread in a step of kernels


class Step:
    """Run steps: `step(batch, number)`.

    Args:
        batch_loss: the loss, whose model is in training mode.
        module: the batch loss wrapped for several processes (`distributed.wrap`), or the batch loss itself.
        optimizer: a fused optimiser; "factor" of a group scales its learning rate.
        config: the configuration of the run.
        rate: function from the number of a step to the learning rate.
        total_steps: number of steps of the run.
        world: the processes of the run.
        say: called with one line for the user.
    """

    def __init__(
        self,
        batch_loss: BatchLoss,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        *,
        rate: Callable[[int], float],
        total_steps: int,
        world: World,
        say: Callable[[str], object] = lambda text: None,
    ):
        self.batch_loss, self.module, self.optimizer, self.config = batch_loss, module, optimizer, config
        self.rate, self.total_steps, self.world, self.say = rate, total_steps, world, say
        self.device = world.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.optim.precision == "fp16")
        self.micro_batch, self.halved = config.execution.micro_batch, False
        self.in_a_row = 0  # steps skipped in a row, up to the last one read
        self._taken: list[_Taken] = []
        self._statistics = _Statistics(batch_loss.model)
        size = sum(p.numel() * p.element_size() for p in batch_loss.parameters())
        self._by_kernels = _by_kernels(batch_loss.model, self.device, config)
        # Blocks that the forward pass freed do not fit the gradients. In a small model this does not matter,
        # and keeping them is faster.
        self._returns_memory = self.device.type == "cpu" and size > _LARGE
        if self.device.type == "cpu" and not self._returns_memory:
            keep_freed()

    def __call__(self, batch: Batch, number: int) -> None:
        """Run one step, `number` counted from 0; the batch may be on the CPU."""
        if self.device.type == "cpu":
            cores.adapt()
        with cores.for_kernels() if self._by_kernels else nullcontext():
            self._step(batch, number)

    def _step(self, batch: Batch, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(number) * group["factor"]
        batch = batch.to(self.device, non_blocking=True)
        losses, loss = self._gradients_in_memory(batch, number)
        with torch.profiler.record_function("dmtl: optimizer"):
            self.scaler.unscale_(self.optimizer)
            norms = self._clip()
            bad = self._agreed(~torch.isfinite(loss), norms)
            if not self.scaler.is_enabled():  # the scaler has its own flag
                # only fused optimisers have it; their kernels read it
                self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._statistics.restore(bad)
            self._observe(losses, bad)
        self._remember(batch, number, losses, loss, norms, bad)

    @property
    def due(self) -> bool:
        """Return whether `read` would not wait for the device, or has not been called for long."""
        return self.device.type == "cpu" or len(self._taken) >= 50

    def read(self) -> Report:
        """Return the values of the last step over all processes, and skipped steps; waits for the device."""
        report = Report()
        for taken in self._taken:
            if bool(taken.bad):
                self.in_a_row += 1
                report.skipped.append(self._described(taken))
            else:
                self.in_a_row = 0
        if self._taken:
            last = self._taken[-1]
            stacked = torch.stack([value.double() for value in last.values.values()])
            total(stacked)
            report.values = dict(zip(last.values, stacked.tolist(), strict=True))
            report.values |= {f"loss/{name}": float(norm) for name, norm in last.norms.items()}
        self._taken.clear()
        return report

    def state_dict(self) -> dict:
        """Return everything that the next step depends on, except weights and optimiser."""
        return {
            "scaler": self.scaler.state_dict(),
            "micro_batch": self.micro_batch,
            "halved": self.halved,
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: dict) -> None:
        self.scaler.load_state_dict(state["scaler"])
        self.micro_batch, self.halved = state["micro_batch"], state["halved"]
        self.in_a_row = state["in_a_row"]

    # gradients

    def _gradients_in_memory(self, batch: Batch, number: int) -> tuple[PairLosses, Tensor]:
        """Run `_gradients`.

        If memory does not suffice, repeat it with half the micro-batch, once in a run.
        """
        self._statistics.keep()
        for _ in range(2):
            try:
                return self._gradients(batch, number)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = one_line(error)
            # Here, outside the except block, the traceback no longer keeps the tensors of the failed step
            # alive.
            self.optimizer.zero_grad(set_to_none=True)
            self._statistics.restore(torch.ones((), dtype=torch.bool, device=self.device))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve(len(batch), failure)
        raise AssertionError("the second failure is raised by _halve")

    def _halve(self, images: int, failure: str) -> None:
        now = min(self.micro_batch or images, images)
        advice = "lower optim.batch_size or data.size, or set execution.recompute = true"
        if self.world.size > 1:  # no recovery: the other processes wait inside a collective call
            raise ConfigError(f"execution.micro_batch = {now} does not fit into memory ({failure}); {advice}")
        if self.halved or now == 1:
            again = "still " if self.halved else ""
            raise ConfigError(
                f"execution.micro_batch = {now} {again}does not fit into memory ({failure}); {advice}"
            )
        self.micro_batch, self.halved = math.ceil(now / 2), True
        self.say(
            f"out of memory with {now} images at a time; continuing with execution.micro_batch = "
            f"{self.micro_batch}, gradients accumulating to the same batch"
        )

    def _gradients(self, batch: Batch, number: int) -> tuple[PairLosses, Tensor]:
        """Accumulate the gradients of all micro-batches.

        Returns:
            The losses of the pairs, and the sum of the micro-batches' scalars.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.split(self.micro_batch) if self.micro_batch else [batch]
        denoises = self.denoises(number)
        distributed.expect(self.module, (*_labelled(batch), denoises, *self._reached(batch)))
        losses, total = [], None
        for i, part in enumerate(parts):
            with distributed.last_micro_batch(self.module, i == len(parts) - 1):
                loss, pairs = self.module(part, number, denoises)
                if self._returns_memory:
                    return_freed()
                if loss.requires_grad:
                    with torch.profiler.record_function("dmtl: backward"):
                        self.scaler.scale(loss).backward()
            losses.append(pairs)
            total = loss.detach() if total is None else total + loss.detach()
        distributed.drop_absent(self.module, complete=not batch.skipped)
        assert total is not None  # a batch has at least one part
        return PairLosses.concat(losses), total

    def _reached(self, batch: Batch) -> tuple[bool, ...]:
        """Return for each objective whether it adds to the loss of this step in any process."""
        objectives = self.batch_loss.by_name.values()
        return tuple(any_rank(objective.reaches(batch)) for objective in objectives)

    def denoises(self, number: int) -> bool:
        """Return whether MTDNet is trained in this step (`optim.mtdnet_start`)."""
        optim = self.config.optim
        return isinstance(self.batch_loss.model, DiffusionMTL) and (
            number >= optim.mtdnet_start * self.total_steps
        )

    # guard

    def _clip(self) -> dict[str, Tensor]:
        """Clip the gradients as configured, and return their norms.

        There is one norm over everything (published), or one for each of the two networks if no gradient
        flows between them.
        """
        model = self.batch_loss.model
        clipped: dict[str, nn.Module] = {"grad_norm": self.batch_loss}
        if isinstance(model, DiffusionMTL) and model.config.detach_signal and model.config.detach_condition:
            clipped = {"grad_norm": model.initial, "grad_norm/mtdnet": model.mtdnet}
        most = self.config.optim.clip or math.inf
        return {name: distributed.clip_grad_norm(part.parameters(), most) for name, part in clipped.items()}

    def _agreed(self, bad: Tensor, norms: dict[str, Tensor]) -> Tensor:
        """Return whether any process had a non-finite value.

        Gradients are the same in all processes. With fp16 the scaler checks them instead, and steps that it
        skips are a part of its search for a scale.
        """
        if not self.scaler.is_enabled():
            for norm in norms.values():
                bad = bad | ~torch.isfinite(norm)
        if self.world.size == 1:
            return bad
        return total(bad.float()) > 0

    def _observe(self, losses: PairLosses, bad: Tensor) -> None:
        """Pass finite losses to the weighting."""
        if self.batch_loss.weighting.fixed:
            return
        sums = {task: torch.where(bad, torch.nan, loss.sum()) for task, loss in losses.final.items()}
        self.batch_loss.weighting.observe(sums, {task: loss.numel() for task, loss in losses.final.items()})

    def _remember(
        self,
        batch: Batch,
        number: int,
        losses: PairLosses,
        loss: Tensor,
        norms: dict[str, Tensor],
        bad: Tensor,
    ) -> None:
        values, parts = {"loss": loss}, losses.parts(batch.total)
        zero = loss.new_zeros(())  # for tasks labelled only in other processes
        for kind in ("", "initial/") if self.denoises(number) else ("",):
            for name in (kind + task for task in _labelled(batch)):
                values[f"loss/{name}"] = parts.get(name, zero)
        for part in (p for objective in self.batch_loss.by_name.values() for p in objective.parts):
            values[part] = losses.added[part].sum() / batch.total if part in losses.added else zero
        self._taken.append(_Taken(number, batch.ids, batch.present, losses, values, norms, bad))

    def _described(self, taken: _Taken) -> Skipped:
        found, all_pairs = {}, {}
        for task in taken.losses.final:
            losses = _both(taken.losses, task)
            names = [id for id, there in zip(taken.ids, taken.present[task].tolist(), strict=True) if there]
            all_pairs[task] = names
            bad = [n for n, fine in zip(names, torch.isfinite(losses).tolist(), strict=True) if not fine]
            if bad:
                found[task] = bad
        spoiled = not math.isfinite(taken.values["loss"])  # by something outside the pairs, if no pair is
        everywhere = gather((found, all_pairs, spoiled))
        of_loss = any(found for found, _, _ in everywhere)
        merged: dict[str, list[str]] = {}
        for found, pairs, _ in everywhere:
            for task, names in (found if of_loss else pairs).items():
                merged.setdefault(task, []).extend(names)
        reason = "loss" if of_loss or any(spoiled for _, _, spoiled in everywhere) else "gradient"
        return Skipped(taken.step, reason, merged)


def _by_kernels(model: DiffusionMTL | MultiTaskBaseline, device: torch.device, config: RunConfig) -> bool:
    """Return whether nearly all of a step is computed by dmtl's kernels, on few cores.

    Then torch's own operators get one thread: their parallel regions wait for cores that other processes use,
    and their results depend on the number of threads. On two free cores this costs nothing that was measured;
    on many, what one thread does would take most of the time.
    """
    optim = config.optim
    return (
        device.type == "cpu"
        and torch.get_num_threads() <= _FEW_THREADS
        and isinstance(model.initial.backbone, EfficientNetLite)
        and model.config.width >= 64  # below it, `Conv3x3` is the library's
        and training_precision(optim.precision, device) == "fp32"
        and not config.execution.compile
        and not optim.objectives
    )


def _labelled(batch: Batch) -> list[str]:
    """Return the tasks labelled anywhere in the step, in the batch's order."""
    return [task for task in batch.present if batch.labelled.get(task)]


def _both(pairs: PairLosses, task: str) -> Tensor:
    return pairs.final[task] + pairs.initial[task] if task in pairs.initial else pairs.final[task]


class _Statistics:
    """Keep and restore the running statistics of batch norms, which a failed or skipped step must not change.

    Those of one dtype are kept in one tensor, because they are many and small.
    """

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.groups: dict[torch.dtype, list[Tensor]] = {}
        for buffer in (buffer for norm in norms for buffer in norm.buffers()):
            self.groups.setdefault(buffer.dtype, []).append(buffer)
        self.kept: dict[torch.dtype, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        self.kept = {dtype: _flat(buffers) for dtype, buffers in self.groups.items()}

    @torch.no_grad()
    def restore(self, when: Tensor) -> None:
        """Restore the statistics if the flag `when` is set, without reading it on the host."""
        for dtype, buffers in self.groups.items():
            right = torch.where(when, self.kept[dtype], _flat(buffers)).split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [part.view_as(b) for part, b in zip(right, buffers, strict=True)])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
