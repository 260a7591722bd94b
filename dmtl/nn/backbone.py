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
"""By `model.backbone`: width of the first ResNet stage -> encoder. Other names are timm's."""


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
    """Build an encoder `image [B, 3, H, W] -> list of maps` with an attribute `channels`; random weights.

    Args:
        name: one of `list_backbones()`, or the name of a timm model (needs the extra `dmtl[timm]`).
        width: channels of the first ResNet stage, 64 in the published network; ignored for other encoders.

    Raises:
        ConfigError: nothing has that name, or timm is needed and cannot be imported.
    """
    return BACKBONES.get(name)(width) if name in BACKBONES else TimmBackbone(name)


class TimmBackbone(nn.Module):
    """A timm encoder whose last (up to four) maps feed the model; parameters have timm's names below `net.`.

    Input images have ImageNet's mean and spread and are converted to those of the encoder's weights.
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
        """Let timm download the encoder's ImageNet weights; return them under this module's names."""
        net = _create(_timm(self.name), self.name, pretrained=True)
        return {f"net.{key}": value for key, value in net.state_dict().items()}

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the prefix `net.` before names that lack it."""
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
            f"backbone = {name!r}: timm does not import here because torchvision was built for another "
            f"torch ({error}); pip install torchvision timm -c constraints.txt"
        ) from None
    return timm


def _create(timm: ModuleType, name: str, pretrained: bool = False) -> Any:
    """Create the network; transformers are set to accept any image size, by their own option."""
    common = dict(features_only=True, pretrained=pretrained)
    for option in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        with suppress(TypeError):  # the model knows no such option
            return timm.create_model(name, **common, **option)
    return timm.create_model(name, **common)
