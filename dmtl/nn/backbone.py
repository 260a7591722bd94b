"""Image encoders: our own networks, or any timm network that offers `features_only`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dmtl.errors import ConfigError
from dmtl.nn.efficientnet import LITE, EfficientNetLite
from dmtl.nn.imagenet import IMAGENET_MEAN, IMAGENET_STD
from dmtl.nn.resnet import DEPTHS, ResNet
from dmtl.registry import Registry

BACKBONES: Registry[Callable[[int], nn.Module]] = Registry("backbone")
"""Value of `model.backbone` -> function (width of the first ResNet stage) that builds the encoder. Other
names are those of timm."""


def _lite(name: str, width: int) -> EfficientNetLite:
    return EfficientNetLite(name)


for _name, _depths in DEPTHS.items():
    BACKBONES.register(_name)(partial(ResNet, _depths))
for _name in LITE:
    BACKBONES.register(_name)(partial(_lite, _name))


def list_backbones(*, timm: bool = False) -> list[str]:
    """Return the names that `ModelConfig.backbone` accepts.

    Args:
        timm: also list the networks of the installed timm.

    Raises:
        ConfigError: timm is requested and cannot be imported.
    """
    return [*BACKBONES.names(), *(_timm("timm").list_models() if timm else ())]


def make_backbone(name: str, width: int = 64) -> nn.Module:
    """Build an encoder with random weights: image [B, 3, H, W] -> list of maps with `encoder.channels`
    channels.

    Args:
        name: one of `list_backbones()`, or the name of a timm model (needs the extra `dmtl[timm]`).
        width: channels of the first ResNet stage, 64 in the published network; ignored for other encoders.

    Raises:
        ConfigError: there is no encoder of that name, or timm is needed and cannot be imported.
    """
    return BACKBONES.get(name)(width) if name in BACKBONES else TimmBackbone(name)


class TimmBackbone(nn.Module):
    """A timm encoder. Its last maps, at most four, are used; its parameters have timm's names after `net.`.

    Images are ImageNet-normalised and are converted to the mean and deviation that the encoder's weights
    expect.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, name: str):
        super().__init__()
        timm = _timm(name)
        try:
            self.net = _create(timm, name)
        except (RuntimeError, ValueError, AttributeError) as error:
            near = (
                ", ".join(difflib.get_close_matches(name, [*BACKBONES.names(), *timm.list_models()], 5))
                or "see timm.list_models()"
            )
            raise ConfigError(
                f"backbone must be one of {', '.join(BACKBONES.names())} or a timm model with features_only, "
                f"got {name!r} ({error}); near: {near}"
            ) from None
        self.name = name
        self.channels = list(self.net.feature_info.channels()[-4:])
        self._channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        cfg = getattr(self.net, "pretrained_cfg", None) or {}
        mean, std = tuple(cfg.get("mean", IMAGENET_MEAN)), tuple(cfg.get("std", IMAGENET_STD))
        self._converts = (mean, std) != (IMAGENET_MEAN, IMAGENET_STD)
        ours, theirs = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([mean, std])
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        self.register_buffer("input_scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("input_shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        if self._converts:
            image = image * self.input_scale + self.input_shift
        maps = self.net(image)[-4:]
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last else list(maps)

    def pretrained_state(self) -> dict[str, Tensor]:
        """Download the encoder's ImageNet weights with timm, and return them under this module's names."""
        net = _create(_timm(self.name), self.name, pretrained=True)
        return {f"net.{key}": value for key, value in net.state_dict().items()}

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state in which all names have the prefix `net.`."""
        return {key if key.startswith("net.") else f"net.{key}": value for key, value in state.items()}


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"backbone must be one of {', '.join(BACKBONES.names())}, "
            "or a timm model once timm is installed: "
            f"pip install 'dmtl[timm]' -c constraints.txt; got {name!r} ({error})"
        ) from None
    except RuntimeError as error:  # torchvision's compiled operators do not match this torch
        raise ConfigError(
            f"backbone = {name!r}: timm cannot be imported, because torchvision was built for another torch "
            f"({error}); pip install torchvision timm -c constraints.txt"
        ) from None
    return timm


def _create(timm: ModuleType, name: str, pretrained: bool = False) -> Any:
    """Create the network; transformers get timm's option to accept any image size."""
    common = dict(features_only=True, pretrained=pretrained)
    for option in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        with suppress(TypeError):  # the model does not have that option
            return timm.create_model(name, **common, **option)
    return timm.create_model(name, **common)
