"""The expert's training step: the second baseline of `benchmarks.training`."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from dmtl.data import Batch
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.train.loss import labelled_rows, sample_scale

from .expert import DTYPES, denoised, fastest_s, reduced, tokens_of
from .plain import fine_map, initial_network, refined


class ExpertTraining:
    """The expert's training loss of a model, for images whose sides are multiples of 32.

    The network is compiled for the shapes and labels of the batch; a real run would have to compile it for
    each combination of labels. Losses are eager. `how` records the outcome.
    """

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline, precision: str, modes: tuple[str, ...]):
        self.model, self.dtype, self.modes = model, DTYPES[precision], modes
        self.plan = model.mtdnet.plan(model.device) if isinstance(model, DiffusionMTL) else None
        self._network: Callable = self._logits
        self.how = "eager, channels_last"

    def choose(self, batch: Batch, step: Callable[[Batch], None]) -> None:
        """Use a compiled network if a mode works and its steps on this batch are faster than eager ones."""
        reasons = []
        for mode in self.modes:
            try:
                self._network = torch.compile(self._logits, mode=mode, dynamic=False)
                with warnings.catch_warnings(action="ignore"):
                    step(batch)
            except Exception as error:  # a failure of the compiler is a result of the benchmark
                reasons.append(f"{mode} failed: {type(error).__name__}")
                torch.compiler.reset()
                continue
            device = batch.image.device
            compiled, took = self._network, fastest_s(lambda: step(batch), device)
            self._network = self._logits
            eager = fastest_s(lambda: step(batch), device)
            if took <= eager:
                self._network, self.how = compiled, f"compiled {mode}, channels_last"
                return
            reasons.append(f"compiled {mode}: {took / eager:.2f}x eager's time")
            break
        self._network = self._logits
        self.how = "; ".join([self.how, *reasons])

    def loss(self, batch: Batch, noise: dict[str, Tensor] | None = None) -> Tensor:
        """Return the scalar to differentiate.

        `noise` is {task: [samples, B, C, h, w]}; None: use randn_like.
        """
        tasks, device = self.model.tasks, batch.image.device
        rows = {task: r for task, r in labelled_rows(batch.present, device).items() if len(r)}
        if noise:
            noise = {task: noise[task][:, r] for task, r in rows.items()}
        with torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
            image = batch.image.contiguous(memory_format=torch.channels_last)
            final, first = self._network(image, rows, noise)
        scale = sample_scale(batch.present) / len(batch)
        total = image.new_zeros(())
        for name, r in rows.items():
            factor = scale[batch.present[name]].to(device, non_blocking=True)
            label = batch.labels[name][r]
            loss = tasks[name].loss(first[name].float(), label)
            if self.plan is not None:
                loss = tasks[name].loss(final[name].float(), label) + 0.5 * loss
            total = total + tasks[name].weight * (factor * loss).sum()
        return total

    def _logits(self, image: Tensor, rows: dict[str, Tensor], noise) -> tuple[dict, dict]:
        """Return logits of the labelled pairs at the image's size, final and initial."""
        features, initial, encoded = initial_network(self.model.initial, image)
        size = image.shape[-2:]
        first = {t: _upsampled(initial[t][r], size) for t, r in rows.items()}
        if self.plan is None:
            return first, first
        net, of_features = self.model.mtdnet, self.model.config.diffusion == "feature"
        condition = net.condition.conv(torch.cat([m.detach() for m in initial.values()], dim=1))
        tokens = tokens_of(reduced(condition, net.condition.reduction))
        tokens = torch.cat([tokens[r] for r in rows.values()])
        start = {task: (features if of_features else initial)[task][r] for task, r in rows.items()}
        plan, last = self.plan, len(self.plan.levels) - 1

        def eps(task: str, draw: int) -> Tensor:
            return torch.randn_like(start[task]) if noise is None else noise[task][draw]

        x = {
            t: plan.sqrt_abar[last] * s + plan.sqrt_one_minus_abar[last] * eps(t, 0) for t, s in start.items()
        }
        for i in reversed(range(last + 1)):
            clean = denoised(self.model, tokens, x, plan.levels[i])
            if i > 0:
                c1, c2, sigma = plan.coef1[i], plan.coef2[i], plan.sigma[i]
                x = {t: c1 * clean[t] + c2 * x[t] + sigma * eps(t, last + 1 - i) for t in x}
        logits = {t: net.heads[t](m) for t, m in clean.items()} if of_features else clean
        fine = fine_map(self.model, encoded, image)
        final = {t: refined(self.model, t, fine, clean[t], z, rows[t]) for t, z in logits.items()}
        return {t: _upsampled(m, size) for t, m in final.items()}, first


def _upsampled(logits: Tensor, size: torch.Size) -> Tensor:
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
