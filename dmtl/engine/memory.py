"""Estimate the memory of a prediction, and the tiles that fit."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmtl.engine.noise import BAND
from dmtl.models.config import ModelConfig
from dmtl.models.initial import PAD_MULTIPLE, padded_side
from dmtl.models.skip import WIDTH
from dmtl.nn.backbone import BACKBONES, make_backbone
from dmtl.nn.efficientnet import InvertedResidual, SeparableBlock
from dmtl.tasks import task_from_spec

SHARE = 0.8  # share of the available memory that a prediction may use
DECODED = 12  # average bytes per pixel of a decoded map, together with that of the previous call
SMALLEST_TILE = 256  # pixels; smaller tiles would show too little of the scene
_SIDE = 256  # side in pixels of the image for which an encoder's maps are counted
_PATCHES, _WEIGHTS = 32 << 20, 28 << 20  # limits in bytes of what a CPU's convolution transforms at a time


def peak_bytes(
    config: ModelConfig,
    wanted: int,
    batch: int,
    height: int,
    width: int,
    *,
    itemsize: int = 4,
    samples: int = 1,
    history: int = 0,
    fused: bool = True,
) -> int:
    """Estimate the bytes of a prediction without its parameters, to about a third (measured on a CPU).

    For each requested task, these maps [B, C, H/8, W/8] count: its signal, its skip map and its tokens in the
    cross blocks, which the engine keeps between calls; its signal again if another noise sample needs it; and
    each earlier estimate that the sampler keeps. Further parts are the encoder's largest maps
    (`encoder_numbers`), the transforms of convolutions, the decoded maps of this and the previous call, and
    the bands in which noise samples are averaged. Recordings (`dmtl.engine.replay`) come on top.

    Args:
        config: configuration of the model.
        wanted: number of requested tasks.
        batch: number of images.
        height: height of the images in pixels.
        width: width of the images in pixels.
        itemsize: bytes of a number.
        samples: number of noise samples.
        history: number of earlier estimates that the sampler keeps.
        fused: whether blocks of the encoder are computed without storing their inner maps, as on a CPU.
    """
    height, width = padded_side(height), padded_side(width)
    pixels = batch * height * width
    numbers, channels = encoder_numbers(config.backbone, config.backbone_width, fused)
    one = pixels // 64 * config.width * itemsize
    maps = {"feature": 2 * wanted + 2, "prediction": wanted + 2, "none": 4}[config.diffusion]
    maps += history * wanted
    tokens = 0 if config.diffusion == "none" else 8 * wanted * one // config.token_reduction**2
    encoder = round(numbers * pixels) * itemsize
    patches = 9 * pixels // 64 * (channels + config.width)  # 36 floats for 16 positions
    workspace = min(patches, _PATCHES) + min(144 * config.width**2, _WEIGHTS)
    peak = maps * one + tokens + encoder + workspace + DECODED * wanted * pixels
    if config.output_stride == 4:
        logits = sum(task_from_spec(spec).channels for spec in config.tasks)
        peak += (samples * logits + 4 * WIDTH) * pixels // 16 * itemsize
    if samples > 1 and config.diffusion != "none":
        channels = max((task_from_spec(spec).channels for spec in config.tasks), default=1)
        again = wanted * one if config.diffusion == "feature" else 0
        peak += again + 8 * wanted * pixels + 8 * 4 * min(channels * pixels, BAND)
    return peak


@functools.cache
def encoder_numbers(backbone: str, width: int, fused: bool = True) -> tuple[float, int]:
    """Count the largest number of elements that an encoder has in memory at a time.

    The encoder is run on a small image (timm's: without storage). The peak is the larger of two: input and
    output of one layer, with batch norms folded; and the maps at 1/8 resolution with their concatenation.

    Args:
        backbone: a name for `make_backbone`.
        width: channels of the first ResNet stage.
        fused: count an inverted residual as one layer.

    Returns:
        The number of elements per pixel of the image, and the number of channels of all maps together.
    """
    most = 0

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal most
        read = sum(x.numel() for x in inputs if isinstance(x, Tensor) and x is not output)
        most = max(most, read + (output.numel() if isinstance(output, Tensor) else 0))

    # Our encoders are small, and the meta device would import torch's compiler, as slow as importing torch.
    device = "cpu" if backbone in BACKBONES else "meta"
    with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        encoder = make_backbone(backbone, width).eval()
        blocks = [m for m in encoder.modules() if fused and isinstance(m, (SeparableBlock, InvertedResidual))]
        inside = {part for block in blocks for part in block.modules()}
        layers = [m for m in encoder.modules() if not (list(m.children()) or isinstance(m, _BatchNorm))]
        for module in [*blocks, *(layer for layer in layers if layer not in inside)]:
            module.register_forward_hook(count)
        encoder(torch.zeros(1, 3, _SIDE, _SIDE))
    channels: int = sum(encoder.channels)  # type: ignore[arg-type]  # nn.Module's stubs know no `channels`
    return max(most / _SIDE**2, 2 * channels / 64), channels


def tile_side(
    config: ModelConfig,
    wanted: int,
    batch: int,
    height: int,
    width: int,
    available: int | None,
    **options: Any,
) -> int | None:
    """Return the side of square tiles for a prediction that does not fit into `SHARE` of the available bytes.

    None: it fits as a whole, or the available memory is unknown. `options` are those of `peak_bytes`.
    """
    if available is None or peak_bytes(config, wanted, batch, height, width, **options) <= SHARE * available:
        return None
    side = largest_tile(config, wanted, batch, int(SHARE * available), **options)
    return side if max(height, width) > side else None


def largest_tile(config: ModelConfig, wanted: int, batch: int, available: int, **options: Any) -> int:
    """Return the largest side of a square tile, a multiple of 32, whose prediction fits; at least 256."""
    side = SMALLEST_TILE
    while peak_bytes(config, wanted, batch, side + PAD_MULTIPLE, side + PAD_MULTIPLE, **options) <= available:
        side += PAD_MULTIPLE
    return side
