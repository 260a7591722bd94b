"""The multi-task conditioned denoiser (DiffusionMTL, arXiv 2403.15389).

Shapes: R rows, one for each (sample, task) pair of the batch, sorted by task; C width; h x w the 1/8 map; N =
(h/r)(w/r) tokens with r = token_reduction. The maps of all tasks are packed in one tensor. All computation on
the hot path uses operators of `dmtl.ops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from dmtl import ops
from dmtl.diffusion import Pairs
from dmtl.diffusion.pairs import concat
from dmtl.models.config import ModelConfig
from dmtl.nn.cross_block import CrossBlock
from dmtl.nn.embeddings import TimeEmbedding
from dmtl.nn.grouped_conv import GroupedConv
from dmtl.nn.precision import cast, cast_all


class Condition(nn.Module):
    """Compute condition tokens from the initial logits of all tasks.

    This is a 3x3 convolution of their concatenation and a bilinear reduction (published: by four). Both are
    linear, so they are folded into one patch product.
    """

    def __init__(self, channels: int, width: int, reduction: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.reduction = reduction

    def forward(self, initial: Mapping[str, Tensor], block: CrossBlock) -> tuple[Tensor, Tensor | None]:
        """Compute tokens [B, N, C] from initial logits {task: [B, C_T, h, w]}.

        Also returns the query of the first cross block for the tokens, which is the same for all tasks and
        steps.
        """
        return self.tokens(initial, self.folded(), block)

    def folded(self) -> Tensor:
        """Return the weight of the patch product: the convolution and the reduction after it."""
        return ops.fold_reduction(self.conv.weight, self.reduction)

    def tokens(
        self, initial: Mapping[str, Tensor], folded: Tensor, block: CrossBlock
    ) -> tuple[Tensor, Tensor | None]:
        """Compute `forward` with a folded weight."""
        norm = block.norm1
        return ops.condition_tokens(
            cast_all(list(initial.values())),
            cast(folded),
            cast(self.conv.bias),
            reduction=self.reduction,
            norm_weight=cast(norm.weight),
            norm_bias=cast(norm.bias),
            query_weight=cast(block.attn.q.weight),
            eps=norm.eps,
        )


@dataclass(frozen=True)
class Layers:
    """The layers of some tasks, collected once for all steps of a chain.

    Attributes:
        pre: the layers before the cross blocks: one group for each signal.
        point: the trunks' 1x1 layers; None if they are folded into the first 3x3.
        trunks: the trunks' 3x3 layers: one list for all rows, or one for each task if tasks are apart.
        last: the last layer of each task, if trunks end in C_T channels; otherwise empty.
        blocks: the cross blocks.
        timed: level -> `pre` with the time embedding added to its biases, if the levels are known beforehand.
    """

    pre: list[GroupedConv]
    point: list[nn.Conv2d] | None
    trunks: list[list[GroupedConv]]
    last: list[GroupedConv]
    blocks: Sequence[CrossBlock]
    timed: dict[float, list[GroupedConv]] = field(default_factory=dict)


class Denoiser(nn.Module):
    """Estimate the clean signals from condition, noisy signals and step, for the rows of all tasks in one
    pass.

    Args:
        config: configuration of the model.
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

    def layers(self, tasks: Sequence[str], *, fold: bool = False, pack: bool = False) -> Layers:
        """Return the layers of these tasks for rows in one packed tensor.

        For inference, `fold` folds the 1x1 into the 3x3 after it, and `pack` transforms the weights for their
        backend in advance.
        """
        pre = [_conv(self.pre_layers[task]) for task in tasks]
        trunks = [list(self.trunks[task].children()) for task in tasks]
        point, first, second, third = ([_conv(trunk[i]) for trunk in trunks] for i in (0, 1, 3, 5))

        def group(convs: list[nn.Conv2d], points: Sequence[nn.Conv2d] = ()) -> GroupedConv:
            made = GroupedConv.after_1x1(points, convs) if points else GroupedConv.of(convs)
            return made.pack() if pack else made

        trunk = [group(first, point if fold else ()), group(second)]
        return Layers(
            [group(pre)] if self.features else [group([conv]) for conv in pre],
            None if fold else point,
            [[*trunk, group(third)] if self.features else trunk],
            [] if self.features else [group([conv]) for conv in third],
            [block for block in self.blocks if isinstance(block, CrossBlock)],
        )

    def timed(self, layers: Layers, level: float) -> list[GroupedConv]:
        """Return the layers before the cross blocks with the time embedding of a step added to their
        biases."""
        time_C = self.time_embedding.of_level(level)
        return [group.shifted(time_C) for group in layers.pre]

    def forward(
        self,
        tokens_RNC: Tensor,
        query_RNC: Tensor | None,
        noisy: Sequence[Tensor],
        pairs: Pairs,
        level: float,
        layers: Layers,
    ) -> list[Tensor]:
        """Denoise the signals.

        Signals, in and out, are one packed tensor [R, C, h, w] (features), or one for each task: [n, C, h, w]
        (features, tasks apart) or [n, C_T, h, w] (predictions).

        Args:
            tokens_RNC: condition tokens of every row; may have another dtype than the signals.
            query_RNC: the first block's query for them; None: compute it.
            noisy: the noisy signals.
            pairs: the rows of each task.
            level: the step.
            layers: the layers of these tasks.
        """
        each, apart = [(count,) for count in pairs.counts], len(layers.trunks) > 1
        pre = layers.timed[level] if level in layers.timed else self.timed(layers, level)
        counts = each if len(pre) > 1 else [pairs.counts]
        skips = [group(x, n, relu=False) for group, x, n in zip(pre, noisy, counts, strict=True)]
        skips = skips if apart else [concat(skips)]
        pairs_of = [ops.noisy_tokens(skip, reduction=self.reduction) for skip in skips]
        skips = [skip for skip, _ in pairs_of]
        x, y = tokens_RNC, concat([tokens for _, tokens in pairs_of]).to(tokens_RNC.dtype)
        del pairs_of
        for block in layers.blocks:
            x, y = block(x, y, query_RNC)
            query_RNC = None
        tokens = x.to(skips[0].dtype).split([skip.shape[0] for skip in skips])
        skips.reverse()

        def start(
            i: int,
        ) -> Tensor:  # a function, so that only its caller holds the result and can free it early
            return ops.upsample_add(tokens[i], skips.pop(), reduction=self.reduction)

        maps = [
            self._trunk(start(i), count, layers, layers.trunks[i])
            for i, count in enumerate(each if apart else [pairs.counts])
        ]
        if self.features:
            return maps
        parts = maps if apart else maps[0].split(pairs.counts)
        return [group(part, n, relu=False) for group, part, n in zip(layers.last, parts, each, strict=True)]

    @staticmethod
    def _trunk(x: Tensor, counts: tuple[int, ...], layers: Layers, trunk: list[GroupedConv]) -> Tensor:
        if layers.point is not None:
            parts = zip(layers.point, x.split(counts), strict=True)
            x = concat([F.conv2d(part, point.weight, point.bias) for point, part in parts])
        for group in trunk:
            x = group(x, counts, relu=True)
        return x


def _conv(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return layer


def _trunk(width: int, channels: int, rectified: bool) -> nn.Sequential:
    """Build a 1x1 and three 3x3 convolutions with ReLU; the last one is `rectified` for features only."""
    layers = [
        nn.Conv2d(width, width, 1),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if rectified else nn.Sequential(*layers)
