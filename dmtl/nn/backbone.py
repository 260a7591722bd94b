"""Choice of the image encoder: our own ResNets, or any timm network that offers `features_only`."""

from __future__ import annotations

from torch import Tensor, nn

from dmtl.errors import ConfigError
from dmtl.nn.resnet import DEPTHS, ResNet


class TimmBackbone(nn.Module):
    """A timm encoder whose last (up to four) maps feed the model. The weights are timm's own names below `net.`"""

    def __init__(self, name: str):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ConfigError(f"backbone = {name!r} needs timm: pip install 'dmtl[timm]' -c constraints.txt "
                              f"(import failed: {error})") from None
        except RuntimeError as error:  # torchvision's compiled operators do not match this torch
            raise ConfigError(f"backbone = {name!r}: timm does not import here because torchvision was built for another "
                              f"torch ({error}); pip install torchvision timm -c constraints.txt") from None
        try:
            self.net = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, ValueError) as error:
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
            raise ConfigError(f"backbone must be one of {sorted(DEPTHS)} or a timm model with features_only, "
                              f"got {name!r} ({error}); near: {near}") from None
        self.channels = list(self.net.feature_info.channels()[-4:])

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.net(image)[-4:]
        # timm's transformers may give channels-last maps; their feature_info tells the channel count.
        return [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, self.channels, strict=True)]


def make_backbone(name: str, width: int = 64) -> nn.Module:
    """An encoder `image [B, 3, H, W] -> list of maps` with an attribute `channels`.

    Args:
        name: "resnet18", "resnet34", or the name of a timm model (needs the extra `dmtl[timm]`).
        width: channels of the first ResNet stage, 64 in the published network; ignored for timm models.
    """
    if name in DEPTHS:
        return ResNet(DEPTHS[name], width)
    return TimmBackbone(name)
