"""The initial network: it computes a feature map and a prediction of every task at 1/8 resolution."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl import ops
from dmtl.models.config import ModelConfig
from dmtl.nn.backbone import make_backbone
from dmtl.nn.conv3x3 import Conv3x3
from dmtl.nn.precision import cast, lowered
from dmtl.nn.resnet import BasicBlock
from dmtl.tasks import Task

PAD_MULTIPLE = 32
"""Images are padded to multiples of 32 pixels, because the denoiser halves the 1/8 map twice more."""


class InitialNetwork(nn.Module):
    """A shared encoder, then one decoder and one 1x1 head per task.

    Args:
        config: configuration of the model.
        channels: task name -> logit channels C_T.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int]):
        super().__init__()
        self.backbone = make_backbone(config.backbone, config.backbone_width)
        # nn.Module's type stubs do not know `channels`.
        channels_in: int = sum(self.backbone.channels)  # type: ignore[arg-type]
        self.embed = Conv3x3(channels_in, config.width)
        self.decoders = nn.ModuleDict(
            {
                task: nn.Sequential(
                    *(BasicBlock(config.width, config.width) for _ in range(config.decoder_blocks))
                )
                for task in channels
            }
        )
        self.heads = nn.ModuleDict({task: nn.Conv2d(config.width, c, 1) for task, c in channels.items()})

    def forward(
        self, image: Tensor, learning: Collection[str] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Compute features [B, C, H/8, W/8] and logits [B, C_T, H/8, W/8] by task, and the encoder's first
        map.

        Args:
            image: [B, 3, H, W], H and W multiples of 32.
            learning: tasks whose decoders may get a gradient; None: all. The others store no activations.
        """
        shared, encoded = self.encode(image)
        return *self.decode(shared, learning), encoded

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the first half of `forward`: the feature map [B, C, H/8, W/8] for all decoders, and the
        encoder's first map."""
        with lowered(self.backbone), lowered(self.embed):
            maps = self.backbone(image)
            return self.embed(join_maps(maps, image)), maps[0]

    def decode(
        self, shared: Tensor, learning: Collection[str] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the second half of `forward` from the feature map."""
        features, logits = {}, {}
        with lowered(self.decoders), lowered(self.heads):
            for task, decoder in self.decoders.items():
                with nullcontext() if learning is None or task in learning else torch.no_grad():
                    features[task] = decoder(shared)
                    logits[task] = self.heads[task](features[task])
        return features, logits


def join_maps(maps: Iterable[Tensor], image: Tensor) -> Tensor:
    """Resize the encoder's maps to 1/8 of the image's size and concatenate them to one [B, C, H/8, W/8]."""
    size = (image.shape[-2] // 8, image.shape[-1] // 8)
    resized = [
        m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear", align_corners=False)
        for m in maps
    ]
    return torch.cat(resized, dim=1)


def pad_image(image: Tensor) -> Tensor:
    """Pad an image at the right and bottom with zeros (the mean colour) to multiples of 32.

    If no padding is needed, the same tensor is returned.
    """
    height, width = image.shape[-2:]
    pad = (-width % PAD_MULTIPLE, -height % PAD_MULTIPLE)
    return F.pad(image, (0, pad[0], 0, pad[1])) if any(pad) else image


def padded_side(side: int) -> int:
    """Return the number of pixels to which `pad_image` pads a side."""
    return side + -side % PAD_MULTIPLE


def factor_of(logits: Tensor, height: int) -> int:
    """Return how many pixels of an image of this height there are to each of its logits: 8 or 4."""
    return padded_side(height) // logits.shape[-2]


def upsample(logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample logits bilinearly to the size of the padded image, and crop to `size`."""
    logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
    return logits if tuple(padded) == tuple(size) else logits[..., : size[0], : size[1]]


def decode(task: Task, logits: Tensor, size: tuple[int, int], factor: int = 8) -> Tensor:
    """Decode logits at 1/factor of the padded image's resolution to a map of `size` = (height, width).

    If `dmtl.ops.decode_map` knows the task's decoding, full-size logits are not stored.
    """
    if task.decoding is not None:
        return ops.decode_map(cast(logits), kind=task.decoding, size=size, factor=factor)
    return task.decode(upsample(logits, (factor * logits.shape[-2], factor * logits.shape[-1]), size))
