"""The network executed as published: the baseline for our speed.

Eager PyTorch, NCHW, one task after another, one operation after another: concatenate and convolve for the
condition, interpolate, flatten, layer norm, three products and a softmax, random noise by randn_like at every
step, logits upsampled to the image's size and decoded there. Reimplemented from the description of the
network (arXiv 2403.15389). It reads the parameters of our model, so that both compute the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.data import Batch
from dmtl.diffusion import ArrayNoise
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.models.initial import pad_image
from dmtl.train.loss import sample_scale

from .plain import ALL, fine_map, initial_network, refined


class Published:
    """The published execution of a `DiffusionMTL` (either mechanism, without our options).

    Args:
        noise: {task: [draws, B, C, h, w]}, default: drawn by randn_like.
        steps: denoising steps, default as trained.
    """

    def __init__(self, model: DiffusionMTL, noise: dict[str, Tensor] | None = None, steps: int | None = None):
        self.model, self.steps = model, steps
        self.noise = ArrayNoise(noise).arrays if noise is not None else None

    def maps(self, image: Tensor, tasks: list[str] | None = None) -> dict[str, Tensor]:
        """Predict task -> decoded map, [B, H, W] or [B, 3, H, W], of an image [B, 3, H, W] of any size."""
        height, width = image.shape[-2:]
        logits = self(pad_image(image), tasks)
        return {t: self.model.tasks[t].decode(x[..., :height, :width]) for t, x in logits.items()}

    def __call__(self, image: Tensor, tasks: list[str] | None = None) -> dict[str, Tensor]:
        """Return task -> logits [B, C_T, H, W] of an image [B, 3, H, W] with sides multiples of 32."""
        net = self.model.mtdnet
        features, initial, encoded = initial_network(self.model.initial, image)
        condition = net.condition.conv(torch.cat([m.detach() for m in initial.values()], dim=1))
        fine = fine_map(self.model, encoded, image)
        final = {}
        for task in self.model.tasks if tasks is None else tasks:
            start = features[task] if self.model.config.diffusion == "feature" else initial[task]
            final[task] = self._upsampled(self._denoised(task, start, condition, fine), image)
        return final

    def _upsampled(self, logits: Tensor, image: Tensor) -> Tensor:
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)

    def _denoised(
        self, task: str, start: Tensor, condition: Tensor, fine: Tensor | None, rows: slice = ALL
    ) -> Tensor:
        net = self.model.mtdnet
        plan = net.plan(start.device, self.steps)
        last = len(plan.levels) - 1
        x = plan.sqrt_abar[last] * start + plan.sqrt_one_minus_abar[last] * self._eps(task, 0, start)
        for i in reversed(range(len(plan.levels))):
            clean = self._denoiser(task, condition, x, plan.levels[i])
            if i == 0:
                break
            eps = self._eps(task, len(plan.levels) - i, x)
            x = plan.coef1[i] * clean + plan.coef2[i] * x + plan.sigma[i] * eps
        logits = net.heads[task](clean) if self.model.config.diffusion == "feature" else clean
        return refined(self.model, task, fine, clean, logits, rows)

    def _eps(self, task: str, draw: int, x: Tensor) -> Tensor:
        return torch.randn_like(x) if self.noise is None else self.noise[task][draw].to(x.dtype)

    def _denoiser(self, task: str, condition: Tensor, noisy: Tensor, level: float) -> Tensor:
        denoiser = self.model.mtdnet.denoiser
        time = denoiser.time_embedding(torch.full((noisy.shape[0],), level, device=noisy.device))
        skip = denoiser.pre_layers[task](noisy) + time[:, :, None, None]
        small = [self._reduced(x, denoiser.reduction) for x in (condition, skip)]
        x, y = (m.flatten(2).transpose(1, 2) for m in small)
        for block in denoiser.blocks:
            y = y + self._mlp(block.mlp_kv, block.norm2_kv(y))
            x = x + self._attention(block.attn, block.norm1(x), block.norm_kv(y))
            x = x + self._mlp(block.mlp, block.norm2(x))
        grid = x.transpose(1, 2).unflatten(-1, small[1].shape[-2:])
        up = F.interpolate(grid, skip.shape[-2:], mode="bilinear", align_corners=False)
        return denoiser.trunks[task](up + skip)

    @staticmethod
    def _reduced(x: Tensor, reduction: int) -> Tensor:
        return F.interpolate(x, scale_factor=1 / reduction, mode="bilinear", align_corners=False)

    @staticmethod
    def _mlp(mlp, x: Tensor) -> Tensor:
        return mlp.fc2(F.gelu(mlp.fc1(x)))

    @staticmethod
    def _attention(attn, x: Tensor, y: Tensor) -> Tensor:
        q = attn.q(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        k, v = attn.kv(y).unflatten(-1, (2, attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return attn.proj((weights @ v).transpose(1, 2).flatten(2))


class PublishedTraining:
    """The published training loss for images whose sides are multiples of 32.

    The initial network runs on the whole batch, then one labelled (sample, task) pair follows another. A
    baseline has no chain, and one loss a pair.
    """

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline):
        self.model = model

    def loss(self, batch: Batch, noise: dict[str, Tensor] | None = None) -> Tensor:
        """Return the scalar to differentiate. noise: {task: [draws, B, C, h, w]}; default: randn_like."""
        tasks, image = self.model.tasks, batch.image
        net = self.model.mtdnet if isinstance(self.model, DiffusionMTL) else None
        features, initial, encoded = initial_network(self.model.initial, image)
        if net is not None:
            condition = net.condition.conv(torch.cat([m.detach() for m in initial.values()], dim=1))
            fine = fine_map(self.model, encoded, image)
        scale = sample_scale(batch.present).tolist()
        total = image.new_zeros(())
        for b in range(len(batch)):
            row = slice(b, b + 1)
            own = None if noise is None else {task: draws[:, row] for task, draws in noise.items()}
            execution = Published(self.model, own)
            for name, task in tasks.items():
                if not batch.present[name][b]:
                    continue
                label = batch.labels[name][row]
                loss = task.loss(execution._upsampled(initial[name][row], image), label)
                if net is not None:
                    start = features[name] if self.model.config.diffusion == "feature" else initial[name]
                    logits = execution._denoised(name, start[row], condition[row], fine, row)
                    final = execution._upsampled(logits, image)
                    loss = task.loss(final, label) + 0.5 * loss
                total = total + scale[b] / len(batch) * task.weight * loss.sum()
        return total
