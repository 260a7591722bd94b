"""The skip decoder: it refines final maps from 1/8 to 1/4 of the image's resolution.

Boundaries and silhouettes are finer than the pixels of the 1/8 map, and only the encoder's first map still
shows them. As in DeepLabv3+ (arXiv 1802.02611), the decoder joins that map with the upsampled signal of a
task; here the result is a correction, which starts at zero, of the upsampled logits. The published network
has no such decoder.

Legend: E channels of the encoder's map m, x the signal of a task (its denoised features, or its logits), z
its logits at 1/8, up bilinear upsampling by 2.

    y = relu(up(reduce(x)) + skip(m));    z' = up(z) + head(relu(conv3x3(y)))
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl import ops
from dmtl.diffusion.pairs import take
from dmtl.nn.conv3x3 import Conv3x3
from dmtl.nn.grouped_conv import GroupedConv
from dmtl.nn.precision import cast, lowered

WIDTH = 32
"""Channels at 1/4 resolution."""


class SkipDecoder(nn.Module):
    """Refine the final logits of every task.

    Args:
        encoder_channels: channels E of the encoder's first map.
        signals: task -> channels of its signal.
        channels: task -> logit channels C_T.
    """

    def __init__(self, encoder_channels: int, signals: Mapping[str, int], channels: Mapping[str, int]):
        super().__init__()
        self.skip = nn.Conv2d(encoder_channels, WIDTH, 1)
        self.reduce = nn.ModuleDict({task: nn.Conv2d(c, WIDTH, 1) for task, c in signals.items()})
        self.convs = nn.ModuleDict({task: Conv3x3(WIDTH, WIDTH) for task in channels})
        self.heads = nn.ModuleDict({task: nn.Conv2d(WIDTH, c, 1) for task, c in channels.items()})
        for head in self.heads.values():
            for parameter in head.parameters():
                nn.init.zeros_(parameter)

    def encode(self, encoded: Tensor, image: Tensor) -> Tensor:
        """Return what `forward` needs of the encoder, [B, WIDTH, H/4, W/4].

        Args:
            encoded: the encoder's first map, [B, E, H/4, W/4]; it is resized if it has another size.
            image: [B, 3, H, W].
        """
        size = (image.shape[-2] // 4, image.shape[-1] // 4)
        if encoded.shape[-2:] != size:
            encoded = F.interpolate(encoded, size, mode="bilinear", align_corners=False)
        with lowered(self.skip):
            return cast(self.skip(encoded))

    def forward(
        self,
        fine: Tensor,
        signals: Mapping[str, Tensor],
        logits: Mapping[str, Tensor],
        rows: Mapping[str, Tensor | None],
        convs: Mapping[str, GroupedConv] | None = None,
    ) -> dict[str, Tensor]:
        """Return task -> logits [n, C_T, 2 h, 2 w].

        Args:
            fine: from `encode`.
            signals: task -> its signal [n, C, h, w].
            logits: task -> its logits [n, C_T, h, w].
            rows: task -> the rows of the batch that it has; None: all.
            convs: task -> the 3x3 layer in its form for inference; None: as trained.
        """
        with lowered(self.reduce), lowered(self.convs), lowered(self.heads):
            return {
                task: self._refined(task, take(fine, rows[task]), signals[task], z, convs)
                for task, z in logits.items()
            }

    def _refined(
        self, task: str, fine: Tensor, x: Tensor, z: Tensor, convs: Mapping[str, GroupedConv] | None
    ) -> Tensor:
        y = _up_and_add(self.reduce[task](x.to(fine.dtype)), fine).relu_()
        y = F.relu(self.convs[task](y)) if convs is None else convs[task](y, (len(y),), relu=True)
        return _up_and_add(z, self.heads[task](y))


def _up_and_add(small: Tensor, large: Tensor) -> Tensor:
    """Upsample [n, C, h, w] by 2 and add [n, C, 2 h, 2 w], in the wider dtype of the two."""
    dtype = torch.promote_types(small.dtype, large.dtype)
    return ops.upsample_add(small.to(dtype).flatten(2).transpose(1, 2), large.to(dtype), reduction=2)
