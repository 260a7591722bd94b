"""The multi-task conditioned denoiser (DiffusionMTL, arXiv 2403.15389).

Shapes: R rows, the (sample, task) pairs of the batch sorted by task; C width, h x w the 1/8 map, N =
(h/r)(w/r) tokens with r = token_reduction. Maps of all tasks are one packed tensor, and everything on the hot
path is an operator of `dmtl.ops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl import ops
from dmtl.diffusion import Pairs
from dmtl.diffusion.pairs import joined
from dmtl.models.config import ModelConfig
from dmtl.nn.cross_block import CrossBlock
from dmtl.nn.embeddings import TimeEmbedding
from dmtl.nn.grouped_conv import GroupedConv
from dmtl.nn.precision import cast, cast_all


class Condition(nn.Module):
    """All tasks' initial logits -> the condition's tokens: a 3x3 convolution of their concatenation and a
    bilinear reduction (published: by four), which fold into one patch product."""

    def __init__(self, channels: int, width: int, reduction: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.reduction = reduction

    def forward(self, initial: Mapping[str, Tensor], block: CrossBlock) -> tuple[Tensor, Tensor]:
        """{task: [B, C_T, h, w]} -> tokens [B, N, C], and the first cross block's query for them, which is
        the same for all tasks and steps."""
        weight = ops.fold_reduction(self.conv.weight, self.reduction)
        norm = block.norm1
        return ops.condition_tokens(
            cast_all(list(initial.values())),
            cast(weight),
            cast(self.conv.bias),
            reduction=self.reduction,
            norm_weight=cast(norm.weight),
            norm_bias=cast(norm.bias),
            query_weight=cast(block.attn.q.weight),
            eps=norm.eps,
        )


@dataclass(frozen=True)
class TaskLayers:
    """The task-specific layers of some tasks, gathered once for all steps of a run.

    pre: one group for each signal. point: the trunks' 1x1 layers, or None where they are folded into the
    first 3x3. trunk: the 3x3 layers for packed rows. last: where a trunk ends in C_T channels, its end for
    each task.
    """

    pre: list[GroupedConv]
    point: list[nn.Conv2d] | None
    trunk: list[GroupedConv]
    last: list[GroupedConv]


class Denoiser(nn.Module):
    """(condition, noisy signals, step) -> estimate of the clean signals, for all tasks' rows in one pass.

    Args:
        signals: task -> channels of the signal that is denoised (C for features, C_T for predictions).
    """

    def __init__(self, config: ModelConfig, signals: Mapping[str, int]):
        super().__init__()
        width = config.width
        self.reduction = config.token_reduction
        self.features = config.diffusion == "feature"
        self.pre_layers = nn.ModuleDict({t: nn.Conv2d(c, width, 3, padding=1) for t, c in signals.items()})
        self.time_embedding = TimeEmbedding(width)
        self.blocks = nn.ModuleList(
            CrossBlock(width, config.heads, config.mlp_ratio) for _ in range(config.blocks)
        )
        self.trunks = nn.ModuleDict(
            {t: _trunk(width, c, rectified=self.features) for t, c in signals.items()}
        )

    def layers(self, tasks: Sequence[str], fold: bool = False) -> TaskLayers:
        """The layers of these tasks. fold: for inference, with the 1x1 folded into the 3x3 behind it and all
        weights transformed for their backend."""
        pre = [self.pre_layers[task] for task in tasks]
        trunks = [self.trunks[task] for task in tasks]
        point, first, second, third = ([trunk[i] for trunk in trunks] for i in (0, 1, 3, 5))
        ready = GroupedConv.pack if fold else (lambda group: group)
        each = (lambda layers: [GroupedConv.of(layers)]) if self.features else _one_by_one
        trunk = [
            GroupedConv.after_1x1(point, first) if fold else GroupedConv.of(first),
            GroupedConv.of(second),
        ]
        ends = each(third)
        return TaskLayers(
            [ready(group) for group in each(pre)],
            None if fold else point,
            [ready(group) for group in (trunk + ends if self.features else trunk)],
            [] if self.features else [ready(group) for group in ends],
        )

    def forward(
        self,
        tokens_RNC: Tensor,
        query_RNC: Tensor | None,
        noisy: Sequence[Tensor],
        pairs: Pairs,
        level: float,
        layers: TaskLayers,
    ) -> list[Tensor]:
        """Condition tokens (and the first block's query for them) of every row, and the noisy signals: one
        packed [R, C, h, w] (features), or [n, C_T, h, w] for each task (predictions). The same, denoised."""
        time_C = self.time_embedding(torch.full((1,), level, device=tokens_RNC.device))[0]
        counts = [pairs.counts] if self.features else [group.counts for group in pairs.single()]
        skips = [
            group(x, count, relu=False, shift=time_C)
            for group, x, count in zip(layers.pre, noisy, counts, strict=True)
        ]
        skip, y = ops.noisy_tokens(joined(skips), reduction=self.reduction)
        x = tokens_RNC
        for block in self.blocks:
            x, y = block(x, y, query_RNC)
            query_RNC = None
        maps = ops.upsample_add(x, skip, reduction=self.reduction)
        if layers.point is not None:
            parts = zip(layers.point, maps.split(pairs.counts), strict=True)
            maps = joined([F.conv2d(part, point.weight, point.bias) for point, part in parts])
        for group in layers.trunk:
            maps = group(maps, pairs.counts, relu=True)
        if self.features:
            return [maps]
        parts = zip(layers.last, maps.split(pairs.counts), pairs.counts, strict=True)
        return [group(part, (count,), relu=False) for group, part, count in parts]


def _one_by_one(layers: Sequence[nn.Conv2d]) -> list[GroupedConv]:
    return [GroupedConv.of([layer]) for layer in layers]


def _trunk(width: int, channels: int, rectified: bool) -> nn.Sequential:
    """1x1, then three 3x3 with ReLU; a prediction (logits) is not rectified at its end, a feature is."""
    layers = [
        nn.Conv2d(width, width, 1),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if rectified else nn.Sequential(*layers)
