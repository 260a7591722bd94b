"""The initial network in plain torch, on our model's parameters: what the baselines share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def initial_network(network, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features and logits of an `InitialNetwork` by task, every layer of the ResNet and of the decoders a
    call of torch's own. (A backbone that is not our ResNet is called as it is.)"""
    size = (image.shape[-2] // 8, image.shape[-1] // 8)
    maps = [
        m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear", align_corners=False)
        for m in _encoded(network.backbone, image)
    ]
    shared = _convolved(network.embed, torch.cat(maps, dim=1))
    features = {task: _through(blocks, shared) for task, blocks in network.decoders.items()}
    return features, {task: network.heads[task](feature) for task, feature in features.items()}


def _encoded(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    if not hasattr(backbone, "layer4"):
        return backbone(image)
    x = backbone.maxpool(torch.relu(backbone.bn1(backbone.conv1(image))))
    maps = []
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = _through(layer, x)
        maps.append(x)
    return maps


def _through(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        shortcut = x if block.downsample is None else block.downsample(x)
        x = torch.relu(block.bn1(_convolved(block.conv1, x)))
        x = torch.relu(block.bn2(_convolved(block.conv2, x)) + shortcut)
    return x


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
