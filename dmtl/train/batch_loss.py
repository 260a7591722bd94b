"""Compute the loss of a batch in one module, which a step differentiates and DDP or FSDP2 can wrap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from dmtl.data.loading.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.errors import ConfigError
from dmtl.models import DiffusionMTL, MultiTaskBaseline, Prediction
from dmtl.models.initial import pad_image
from dmtl.nn.precision import training_precision
from dmtl.train.config import OptimConfig
from dmtl.train.loss import PairLosses, labelled_rows, pair_losses, weighted_sum
from dmtl.train.objective import Objective, Seen, make_objectives
from dmtl.train.weighting import Weighting

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class BatchLoss(nn.Module):
    """Compute the loss of the labelled pairs of a batch, divided by the number of images of the whole step.

    The initial network processes the whole batch, the denoiser only the labelled (sample, task) pairs, with
    all tasks in one call per denoising step. Noise depends only on (seed, step, sample), and not on how the
    batch is divided.

    `objectives` add their losses. Their weights are trained together with the model, but are not part of it.
    """

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline, weighting: Weighting, config: OptimConfig):
        super().__init__()
        self.model, self.weighting, self.config = model, weighting, config
        self.objectives = make_objectives(config.objectives, config.seed, model)
        self.dense = any(objective.dense for objective in self.objectives.values())
        if self.dense and model.skip is not None:
            raise ConfigError(
                f"optim.objectives ({', '.join(self.objectives)}) need model.output_stride = 8, got 4"
            )

    @property
    def by_name(self) -> Mapping[str, Objective]:
        """Return `objectives` with their type: `nn.ModuleDict` is typed as a container of arbitrary
        modules."""
        return cast("Mapping[str, Objective]", self.objectives)

    def forward(self, batch: Batch, step: int, denoises: bool) -> tuple[Tensor, PairLosses]:
        """Return the scalar to differentiate (0 if no pair is labelled) and the detached losses of the pairs.

        Args:
            batch: all or some of the step's images, on the model's device.
            step: number of the step, from 0.
            denoises: False: run only the initial network, and treat its predictions as the final ones.
        """
        device = batch.image.device
        precision = AUTOCAST.get(training_precision(self.config.precision, device))
        with torch.autocast(device.type, precision) if precision else nullcontext():
            with torch.profiler.record_function("dmtl: forward"):
                image = batch.image.contiguous(memory_format=torch.channels_last)
                rows = labelled_rows(batch.present, device)
                feature = logits = None
                if self.dense:
                    feature, _ = self.model.initial.encode(pad_image(image))
                    _, logits = self.model.initial.decode(feature)
                    known = {task: logits[task][r] for task, r in rows.items() if len(r)}
                    prediction = Prediction(known, known, {})
                elif denoises:
                    noise = CounterNoise((self.config.seed << 32) + step, batch.index)
                    prediction = self.model(image, labelled=rows, noise=noise, upsampled=False)
                else:
                    prediction = self.model.initial_prediction(image, labelled=rows, upsampled=False)
            with torch.profiler.record_function("dmtl: loss"):
                total, losses = self._judged(prediction, batch, rows, denoises)
                added, total = self._added(Seen(batch, prediction, feature, logits), total)
                losses = dataclasses.replace(losses, added=added)
                return total, losses.detached()

    def _judged(
        self, prediction: Prediction, batch: Batch, rows: Mapping[str, Tensor], denoises: bool
    ) -> tuple[Tensor, PairLosses]:
        tasks = self.model.tasks
        losses = pair_losses(prediction, batch.labels, rows, tasks, final=denoises, upsampled=False)
        total = weighted_sum(
            losses,
            batch.present,
            tasks,
            initial_weight=self.config.initial_weight,
            images=batch.total,
            weighting=self.weighting,
        )
        if total is None:
            total = batch.image.new_zeros(())
        return total, losses

    def _added(self, seen: Seen, total: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses [n] of all objectives by part, and the total including them."""
        added = {}
        for name, objective in self.by_name.items():
            weight = self.config.objectives[name] / seen.batch.total
            for part, values in objective(seen).items():
                added[part] = values.reshape(-1)
                total = total + weight * objective.parts[part] * values.sum()
        return added, total
