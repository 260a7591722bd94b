"""A batch's loss as one module: what processes share, and what a step differentiates."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dmtl.data.loading.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.models import DiffusionMTL, MultiTaskBaseline, Prediction
from dmtl.models.initial import pad_image
from dmtl.train.config import OptimConfig
from dmtl.train.consistency import make_consistency
from dmtl.train.loss import PairLosses, labelled_rows, pair_losses, weighted_sum
from dmtl.train.weighting import Weighting

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """(batch, step) -> the loss of the labelled pairs, over the images of the whole step.

    The initial network sees the whole batch, the denoiser the labelled (sample, task) pairs alone, all tasks
    in one call per denoising step. Noise follows from (seed, step, sample), so that it does not depend on how
    a batch is divided.

    `consistency` (None where the configuration asks for none) adds what the labels of an image say about its
    other tasks. Its weights are trained with the model's, and are no part of the model.
    """

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline, weighting: Weighting, config: OptimConfig):
        super().__init__()
        self.model, self.weighting, self.config = model, weighting, config
        self.consistency = make_consistency(config, model)

    def forward(self, batch: Batch, step: int, denoises: bool) -> tuple[Tensor, PairLosses]:
        """The scalar to differentiate (0 where no pair is labelled) and the pairs' losses, detached.

        Args:
            batch: on the model's device, whole or a part of the step's images.
            step: the step's number, from 0.
            denoises: False: the initial network alone, its predictions judged as final ones.
        """
        device = batch.image.device
        precision = AUTOCAST.get(self.config.precision)
        with torch.autocast(device.type, precision) if precision else nullcontext():
            with torch.profiler.record_function("dmtl: forward"):
                image = batch.image.contiguous(memory_format=torch.channels_last)
                rows = labelled_rows(batch.present, device)
                if self.consistency is not None:
                    feature = self.model.initial.encode(pad_image(image))
                    _, logits = self.model.initial.decode(feature)
                    known = {task: logits[task][r] for task, r in rows.items() if len(r)}
                    prediction = Prediction(known, known, {})
                elif denoises:
                    noise = CounterNoise((self.config.seed << 32) + step, batch.index)
                    prediction = self.model(image, labelled=rows, noise=noise, upsampled=False)
                else:
                    prediction = self.model.initial_prediction(image, labelled=rows, upsampled=False)
            with torch.profiler.record_function("dmtl: loss"):
                total, losses = self._judged(prediction, batch, denoises)
                if self.consistency is not None:
                    added = self.consistency(feature, logits, batch.labels, batch.present)
                    losses = dataclasses.replace(losses, consistency=added)
                    total = total + self._weighted(added, batch.total)
                return total, losses.detached()

    def _judged(self, prediction, batch: Batch, denoises: bool) -> tuple[Tensor, PairLosses]:
        tasks = self.model.tasks
        losses = pair_losses(prediction, batch.labels, batch.present, tasks, final=denoises, upsampled=False)
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

    def _weighted(self, consistency: dict[str, Tensor], images: int) -> Tensor | float:
        """What the pairs of tasks add to the loss, over the images of the whole step."""
        if not consistency:
            return 0.0
        config = self.config
        each = (
            consistency["consistency"]
            + config.consistency_regulariser * consistency["consistency_regulariser"]
        )
        return config.consistency / images * each.sum()
