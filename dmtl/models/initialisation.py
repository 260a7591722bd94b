"""How an untrained MTDNet starts.

The chain has no normalisation and, for every denoising step, five convolutions a task. Under torch's
default each of them shrinks the signal, so that after two steps the output hardly depends on the image: the
final loss first teaches constants, and its gradient disturbs the shared network. Starting near the
identity, the chain hands on what it was given, and the condition, the time embedding and the noise-robust
corrections grow from small values.
"""

from __future__ import annotations

import torch
from torch import nn

SMALL = 0.1
"""Factor on everything that is added to the identity."""


@torch.no_grad()
def start_as_identity(mtdnet: nn.Module) -> None:
    """Convolutions become identity + 0.1 He-normal noise (He-normal where channel counts differ); branches
    start small."""
    denoiser = mtdnet.denoiser
    for group in (denoiser.pre_layers, denoiser.trunks):
        for conv in (m for m in group.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            if conv.in_channels == conv.out_channels:
                centre = conv.kernel_size[0] // 2
                conv.weight.mul_(SMALL)
                conv.weight[:, :, centre, centre] += torch.eye(conv.in_channels)
    branches = [denoiser.time_embedding.mlp[-1], mtdnet.condition.conv]
    for block in denoiser.blocks:
        branches += [block.attn.proj, block.mlp.fc2, block.mlp_kv.fc2]
    for layer in branches:
        layer.weight.mul_(SMALL)
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def start_without_correction(mtdnet: nn.Module) -> None:
    """The last layer of every task gives zero, so that a residual model starts exactly at its initial
    predictions."""
    last = list(mtdnet.heads.values()) or [trunk[-1] for trunk in mtdnet.denoiser.trunks.values()]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
