"""The initial network and the skip decoder in plain torch with our model's parameters, shared by the
baselines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl.nn.efficientnet import DepthwiseConv, EfficientNetLite, InvertedResidual, Stem

ALL = slice(None)


def initial_network(network, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Compute features and logits of an `InitialNetwork` by task, and the encoder's first map, with a torch
    call for every layer of the encoder and decoders. (An encoder of timm is called directly.)"""
    encoded = _encoded(network.backbone, image)
    maps = [_resized(m, image, 8) for m in encoded]
    shared = _convolved(network.embed, torch.cat(maps, dim=1))
    features = {task: _through(blocks, shared) for task, blocks in network.decoders.items()}
    logits = {task: network.heads[task](feature) for task, feature in features.items()}
    return features, logits, encoded[0]


def fine_map(model, encoded: Tensor, image: Tensor) -> Tensor | None:
    """Return what the skip decoder of a `DiffusionMTL` takes from the encoder's first map; None if the model
    has no skip decoder."""
    return None if model.skip is None else model.skip.skip(_resized(encoded, image, 4))


def refined(
    model,
    task: str,
    fine: Tensor | None,
    signal: Tensor,
    logits: Tensor,
    rows: Tensor | slice = ALL,
) -> Tensor:
    """Refine the final logits of a task, those of these rows of the batch, from 1/8 to 1/4 of the image's
    size; without a skip decoder they stay as they are."""
    if fine is None:
        return logits
    y = torch.relu(_doubled(model.skip.reduce[task](signal)) + fine[rows])
    y = torch.relu(_convolved(model.skip.convs[task], y))
    return _doubled(logits) + model.skip.heads[task](y)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _resized(x: Tensor, image: Tensor, stride: int) -> Tensor:
    size = (image.shape[-2] // stride, image.shape[-1] // stride)
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _encoded(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    if isinstance(backbone, EfficientNetLite):
        return _lite(backbone, image)
    if not hasattr(backbone, "layer4"):
        return backbone(image)
    x = backbone.maxpool(torch.relu(backbone.bn1(backbone.conv1(image))))
    maps = []
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = _through(layer, x)
        maps.append(x)
    return maps


def _lite(backbone: EfficientNetLite, image: Tensor) -> list[Tensor]:
    x = image * backbone.input_scale + backbone.input_shift
    x = F.relu6(backbone.bn1(_convolved(backbone.conv_stem, x)))
    by_width = {}
    for stage in backbone.blocks:
        for block in stage:
            x = _residual(block, x) if isinstance(block, InvertedResidual) else _separable(block, x)
        by_width[x.shape[-1]] = x  # the last one of each size counts
    return list(by_width.values())[-4:]


def _separable(block: nn.Module, x: Tensor) -> Tensor:
    x = F.relu6(block.bn1(_convolved(block.conv_dw, x)))
    return block.bn2(_convolved(block.conv_pw, x))


def _residual(block: InvertedResidual, x: Tensor) -> Tensor:
    y = F.relu6(block.bn1(_convolved(block.conv_pw, x)))
    y = F.relu6(block.bn2(_convolved(block.conv_dw, y)))
    y = block.bn3(_convolved(block.conv_pwl, y))
    return x + y if block.shortcut else y


def _through(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        shortcut = x if block.downsample is None else block.downsample(x)
        x = torch.relu(block.bn1(_convolved(block.conv1, x)))
        x = torch.relu(block.bn2(_convolved(block.conv2, x)) + shortcut)
    return x


def depthwise_convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Convolve every channel; symmetric padding is built in, TensorFlow's at stride 2 needs a padded copy.

    Args:
        padding: zeros on the left and top.
    """
    if stride == 1:
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    padded = F.pad(x, (padding, weight.shape[-1] - 2 - padding) * 2)
    return F.conv2d(padded, weight, bias, stride=stride, groups=x.shape[1])


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if isinstance(conv, DepthwiseConv):
        return depthwise_convolved(x, conv.weight, conv.bias, conv.stride[0], conv.first)
    if isinstance(conv, Stem):
        x = F.pad(x, conv.extra)
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
