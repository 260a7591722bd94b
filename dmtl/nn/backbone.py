"""Choice of the image encoder: our own ResNets, or any timm network that offers `features_only`."""

from __future__ import annotations

import difflib
from contextlib import suppress

from torch import Tensor, nn

from dmtl.errors import ConfigError
from dmtl.nn.resnet import DEPTHS, ResNet


class TimmBackbone(nn.Module):
    """A timm encoder whose last (up to four) maps feed the model. The weights are timm's own names below
    `net.`"""

    def __init__(self, name: str):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ConfigError(
                f"backbone must be one of {', '.join(DEPTHS)}, or a timm model once timm is installed: "
                f"pip install 'dmtl[timm]' -c constraints.txt; got {name!r} ({error})"
            ) from None
        except RuntimeError as error:  # torchvision's compiled operators do not match this torch
            raise ConfigError(
                f"backbone = {name!r}: timm does not import here because torchvision was built for another "
                f"torch ({error}); pip install torchvision timm -c constraints.txt"
            ) from None
        try:
            self.net = _create(timm, name)
        except (RuntimeError, ValueError, AttributeError) as error:
            near = (
                ", ".join(difflib.get_close_matches(name, timm.list_models(), 5)) or "see timm.list_models()"
            )
            raise ConfigError(
                f"backbone must be one of {', '.join(DEPTHS)} or a timm model with features_only, "
                f"got {name!r} ({error}); near: {near}"
            ) from None
        self.channels = list(self.net.feature_info.channels()[-4:])
        self._channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.net(image)[-4:]
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last else list(maps)


def _create(timm, name: str) -> nn.Module:
    """The network without weights; transformers are asked to take images of any size, each family in its
    own words."""
    for option in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        with suppress(TypeError):  # the model knows no such option
            return timm.create_model(name, features_only=True, pretrained=False, **option)
    return timm.create_model(name, features_only=True, pretrained=False)


def make_backbone(name: str, width: int = 64) -> nn.Module:
    """An encoder `image [B, 3, H, W] -> list of maps` with an attribute `channels`.

    Args:
        name: "resnet18", "resnet34", or the name of a timm model (needs the extra `dmtl[timm]`).
        width: channels of the first ResNet stage, 64 in the published network; ignored for timm models.
    """
    if name in DEPTHS:
        return ResNet(DEPTHS[name], width)
    return TimmBackbone(name)
