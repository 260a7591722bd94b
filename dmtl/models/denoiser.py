"""The multi-task conditioned denoiser (DiffusionMTL, arXiv 2403.15389).

Shapes: n rows of one task, R = sum of n over tasks, C width, h x w the 1/8 map, N = (h/r)(w/r) tokens with
r = token_reduction.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl.models.config import ModelConfig
from dmtl.nn.cross_block import CrossBlock
from dmtl.nn.embeddings import TimeEmbedding


class Condition(nn.Module):
    """All tasks' initial logits -> the condition's tokens, one 3x3 convolution and a reduction (published:
    by four)."""

    def __init__(self, channels: int, width: int, reduction: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.reduction = reduction

    def forward(self, initial: Mapping[str, Tensor]) -> Tensor:
        """{task: [B, C_T, h, w]} -> [B, N, C]."""
        return tokens(self.conv(torch.cat(list(initial.values()), dim=1)), self.reduction)


class Denoiser(nn.Module):
    """(condition, noisy signal, step) -> estimate of the clean signal, for all tasks' rows in one pass.

    The cross blocks are shared and see the rows of all tasks as one batch; what belongs to a task is called
    once for it.

    Args:
        signals: task -> channels of the signal that is denoised (C for features, C_T for predictions).
    """

    def __init__(self, config: ModelConfig, signals: Mapping[str, int]):
        super().__init__()
        width = config.width
        self.reduction = config.token_reduction
        self.pre_layers = nn.ModuleDict({t: nn.Conv2d(c, width, 3, padding=1) for t, c in signals.items()})
        self.time_embedding = TimeEmbedding(width)
        self.blocks = nn.ModuleList(
            CrossBlock(width, config.heads, config.mlp_ratio) for _ in range(config.blocks)
        )
        self.trunks = nn.ModuleDict(
            {t: _trunk(width, c, rectified=config.diffusion == "feature") for t, c in signals.items()}
        )

    def forward(self, condition: Tensor, noisy: Mapping[str, Tensor], level: float) -> dict[str, Tensor]:
        """condition [R, N, C] with the rows in the order of `noisy` {task: [n, C_signal, h, w]} -> the same
        dict, denoised."""
        any_map = next(iter(noisy.values()))
        time = self.time_embedding(torch.full((1,), level, device=any_map.device))
        skips = [self.pre_layers[task](x) + time[:, :, None, None] for task, x in noisy.items()]
        x, y = condition, torch.cat([tokens(skip, self.reduction) for skip in skips])
        for block in self.blocks:
            x, y = block(x, y)
        clean, start = {}, 0
        for task, skip in zip(noisy, skips, strict=True):
            rows = x[start : start + skip.shape[0]]
            clean[task] = self.trunks[task](upsampled(rows, skip.shape[-2:], self.reduction) + skip)
            start += skip.shape[0]
        return clean


def tokens(x: Tensor, reduction: int) -> Tensor:
    """[n, C, h, w] -> [n, N, C]: bilinear reduction by 1, 2 or 4, N = h w / reduction^2.

    Bilinear interpolation (align_corners=False) by an even factor is the mean of the 2x2 centre of every
    block.
    """
    if reduction > 1:
        margin = reduction // 2 - 1
        x = F.avg_pool2d(x[..., margin:, margin:], 2, stride=reduction)
    return x.flatten(2).transpose(1, 2)


def upsampled(x: Tensor, size: tuple[int, int], reduction: int) -> Tensor:
    """[n, N, C] -> [n, C, h, w]: tokens back on their grid, then bilinear interpolation to the map's size."""
    grid = x.transpose(1, 2).unflatten(-1, (size[0] // reduction, size[1] // reduction))
    return (
        grid
        if reduction == 1
        else F.interpolate(grid, scale_factor=reduction, mode="bilinear", align_corners=False)
    )


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
