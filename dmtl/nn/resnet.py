"""Build residual networks with torchvision's and timm's parameter names; their weights load unchanged.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385 (basic blocks,
without a classifier).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl.nn.batch_norm import norm_act
from dmtl.nn.conv3x3 import Conv3x3


class Pointwise(nn.Conv2d):
    """A 1x1 convolution. In training its stride selects the pixels first, which is equivalent.

    oneDNN's weight gradient of a strided 1x1 writes out of bounds on CPUs with AVX2 but no AVX-512, if the
    input channels are not a multiple of 8 (PyTorch 2.13, channels-last).
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        down, right = self.stride
        return F.conv2d(input[..., ::down, ::right], self.weight, self.bias)


def _conv_norm_relu(conv: nn.Conv2d, norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return relu(norm(conv(x)) + residual). With the norm folded into the convolution, cuDNN computes all of
    it in one kernel."""
    if type(norm) is nn.Identity and _fused_by_cudnn(x.device, x.dtype):
        where: tuple = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if residual is None:
            return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *where)
        return torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, conv.bias, *where)
    if residual is None:
        return norm_act(norm, conv(x))
    return norm_act(norm, conv(x), None).add_(residual).relu_()


@functools.cache
def _fused_by_cudnn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether cuDNN has a convolution with bias, residual and ReLU for this device and dtype."""
    if device.type != "cuda" or not torch.backends.cudnn.is_available():
        return False
    x = torch.ones(1, 8, 4, 4, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = x.new_ones(8, 8, 3, 3)
    try:
        torch.cudnn_convolution_add_relu(x, weight, x, 1.0, x.new_ones(8), [1, 1], [1, 1], [1, 1], 1)
    except RuntimeError:
        return False
    return True


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut: [B, C_in, H, W] -> [B, C, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = (
            Conv3x3(in_channels, channels, bias=False)
            if stride == 1
            else nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv3x3(channels, channels, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                Pointwise(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = _conv_norm_relu(self.conv1, self.bn1, x)
        return _conv_norm_relu(self.conv2, self.bn2, x, shortcut)

    @torch.no_grad()
    def merge_biases_(self) -> None:
        """Move the shortcut's bias, which folding its norm left, to the convolution that it is added to."""
        if self.downsample is None:
            return
        point, last = self.downsample[0], self.conv2
        assert isinstance(point, nn.Conv2d)
        if point.bias is not None and last.bias is not None:
            last.bias += point.bias
            point.bias = None


class ResNet(nn.Module):
    """Compute four maps of an image [B, 3, H, W], at 1/4, 1/8, 1/16 and 1/32, with `channels` channels.

    Args:
        depths: blocks in each of the four stages, (2, 2, 2, 2) for ResNet-18 and (3, 4, 6, 3) for ResNet-34.
        width: channels of the first stage (64 in the published networks); the others have 2, 4 and 8 times
        as many.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, depths: tuple[int, int, int, int], width: int = 64):
        super().__init__()
        self.channels = [width * 2**i for i in range(4)]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        in_channels = width
        for i, (depth, channels) in enumerate(zip(depths, self.channels, strict=True)):
            blocks = [
                BasicBlock(in_channels if j == 0 else channels, channels, 2 if j == 0 and i > 0 else 1)
                for j in range(depth)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            in_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.maxpool(_conv_norm_relu(self.conv1, self.bn1, image))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the classifier `fc` of a published state; its other names are this module's."""
        return {key: value for key, value in state.items() if not key.startswith("fc.")}


DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
