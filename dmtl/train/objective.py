"""A batch's loss as one module: what processes share, and what a step differentiates."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dmtl.data.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.train.config import OptimConfig
from dmtl.train.loss import PairLosses, labelled_rows, pair_losses, weighted_sum
from dmtl.train.weighting import Weighting

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """(batch, step) -> the loss of the labelled pairs, over the images of the whole step.

    The initial network sees the whole batch, the denoiser the labelled (sample, task) pairs alone, all tasks
    in one call per denoising step. Noise follows from (seed, step, sample), so that it does not depend on how
    a batch is divided.
    """

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline, weighting: Weighting, config: OptimConfig):
        super().__init__()
        self.model, self.weighting, self.config = model, weighting, config

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
                if denoises:
                    noise = CounterNoise((self.config.seed << 32) + step, batch.index)
                    prediction = self.model(image, labelled=rows, noise=noise, upsampled=False)
                else:
                    prediction = self.model.initial_prediction(image, labelled=rows, upsampled=False)
            with torch.profiler.record_function("dmtl: loss"):
                return self._judged(prediction, batch, denoises)

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
        return total, losses.detached()
