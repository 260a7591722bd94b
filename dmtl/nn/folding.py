"""Batch norm folded into the convolution before it, for inference."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dmtl.nn.resnet import BasicBlock, ResNet


def fold_batch_norms_(module: nn.Module) -> nn.Module:
    """Folds every batch norm (running statistics) of the residual networks inside `module` into its
    convolution, in place: (w * x - mean) / sqrt(var + eps) * weight + bias is a convolution with a bias.
    Encoders that are not ours stay as they are. Returns `module`, in eval mode."""
    module.eval()
    for part in list(module.modules()):
        if isinstance(part, (BasicBlock, ResNet)):
            names = ("1", "2") if isinstance(part, BasicBlock) else ("1",)
            for name in names:
                conv, norm = getattr(part, f"conv{name}"), getattr(part, f"bn{name}")
                _fold(part, f"conv{name}", conv, f"bn{name}", norm)
        if isinstance(part, BasicBlock) and part.downsample is not None:
            _fold(part.downsample, "0", part.downsample[0], "1", part.downsample[1])
    return module


def _fold(owner: nn.Module, conv_name: str, conv: nn.Conv2d, norm_name: str, norm: nn.Module) -> None:
    if isinstance(norm, nn.Identity):  # folded before
        return
    setattr(owner, conv_name, fuse_conv_bn_eval(conv, norm))
    setattr(owner, norm_name, nn.Identity())
