"""Initialise MTDNet.

The chain has no normalisation, and five convolutions per task in every denoising step. With torch's default
initialisation, each of them shrinks the signal, so that the output hardly depends on the image after two
steps. The network then first learns constants, and the gradient of the final loss disturbs the shared
network. Initialised near the identity, the chain passes its input on. The effects of condition and time
embedding, and corrections of noise, grow from small values during training.
"""

from __future__ import annotations

import torch
from torch import nn

from dmtl.models.denoiser import Condition, Denoiser
from dmtl.nn.cross_block import CrossBlock

SMALL = 0.1
"""Factor on the random weights that are added to the identity."""


@torch.no_grad()
def start_as_identity(condition: Condition, denoiser: Denoiser) -> None:
    """Initialise convolutions as identity + 0.1 He-normal noise, and branches with small values.

    If a convolution changes the number of channels, it gets He-normal weights without the identity.
    """
    for group in (denoiser.pre_layers, denoiser.trunks):
        for conv in (m for m in group.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            _clear_bias(conv)
            if conv.in_channels == conv.out_channels:
                centre = conv.kernel_size[0] // 2
                conv.weight.mul_(SMALL)
                conv.weight[:, :, centre, centre] += torch.eye(conv.in_channels)
    branches: list[nn.Module] = [denoiser.time_embedding.mlp[-1], condition.conv]
    for block in denoiser.blocks:
        assert isinstance(block, CrossBlock)
        branches += [block.attn.proj, block.mlp.fc2, block.mlp_kv.fc2]
    for layer in branches:
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        layer.weight.mul_(SMALL)
        _clear_bias(layer)


@torch.no_grad()
def start_without_correction(denoiser: Denoiser, heads: nn.ModuleDict) -> None:
    """Set the last layer of every task to zero: a residual model then starts exactly at its initial
    predictions."""
    trunks = [trunk for trunk in denoiser.trunks.values() if isinstance(trunk, nn.Sequential)]
    for layer in list(heads.values()) or [trunk[-1] for trunk in trunks]:
        assert isinstance(layer, nn.Conv2d)
        nn.init.zeros_(layer.weight)
        _clear_bias(layer)


def _clear_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
