"""A 3x3 convolution that trains by Winograd's algorithm if that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl import ops

# Measured on two Zen 5 cores, forward and backward in float32: the operator has 0.74 of the library's speed
# for weight matrices of 512x512 at 256 pixels, 1.4 times it for 256x256 at 1024, 2.2 for 512x512 at 4096;
# below 64 channels there is nothing to gain.
_ELEMENTS_A_PIXEL = 256
_LEAST_ELEMENTS = 64 * 64


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d` of 3x3 pixels, stride 1 and padding 1, with the same parameters and, in inference, the same
    bits. In training mode `ops.conv3x3` computes channels-last float32 on a CPU if there are enough pixels to
    pay for transforming the weights. The library computes everything else (other layouts, which would need a
    copy, 16-bit numbers, GPUs, compiled graphs)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, C, h, w] -> [B, K, h, w]."""
        if not self._by_operator(x):
            return F.conv2d(x, self.weight, self.bias, padding=1)
        biases = None if self.bias is None else [self.bias]
        return ops.conv3x3(x, [self.weight], biases, [x.shape[0]])

    def _by_operator(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return False
        if not self.training or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return False
        if not x.is_contiguous(memory_format=torch.channels_last):
            return False
        elements, pixels = self.in_channels * self.out_channels, x.shape[0] * x.shape[2] * x.shape[3]
        return _LEAST_ELEMENTS <= elements <= _ELEMENTS_A_PIXEL * pixels
