"""Choice of the encoder; timm is played by a module made here."""

import sys
import types

import pytest
import torch
from torch import nn

from dmtl.errors import ConfigError
from dmtl.models import ModelConfig, create_model
from dmtl.nn.backbone import make_backbone
from dmtl.nn.resnet import ResNet
from dmtl.tasks import make_task


class FakeNet(nn.Module):
    """Five maps at 1/2 .. 1/32, as timm's `features_only` networks give them."""

    CHANNELS = [4, 6, 8, 10, 12]

    def __init__(self, layout: str | None = None):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(i, o, 3, 2, 1) for i, o in zip([3, *self.CHANNELS], self.CHANNELS)
        )
        self.feature_info = types.SimpleNamespace(channels=lambda: list(self.CHANNELS))
        if layout:
            self.output_fmt = layout

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 2, 3, 1) if getattr(self, "output_fmt", "") == "NHWC" else x)
        return maps


@pytest.fixture
def timm(monkeypatch):
    """A `timm` that knows three networks and remembers how they were asked for."""
    calls = []

    def create_model(name, features_only=False, pretrained=True, **options):
        calls.append((name, options))
        allowed = {"plain": set(), "vit": {"dynamic_img_size"}, "swin": {"strict_img_size"}}
        if name not in allowed:
            raise RuntimeError(f"Unknown model ({name})")
        if not set(options) <= allowed[name]:
            raise TypeError(f"unexpected keyword argument {sorted(options)}")
        assert features_only and not pretrained
        return FakeNet("NHWC" if name == "swin" else None)

    module = types.ModuleType("timm")
    module.create_model, module.list_models, module.calls = (
        create_model,
        lambda: ["plain", "vit", "swin"],
        calls,
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_own_resnet_needs_no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert isinstance(make_backbone("resnet34", 8), ResNet)


def test_without_timm_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"resnet18.*pip install 'dmtl\[timm\]'.*got 'convnext_tiny'"):
        make_backbone("convnext_tiny")


def test_timm_beside_a_foreign_torchvision(monkeypatch):
    def find_spec(name, path=None, target=None):
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=find_spec), *sys.meta_path])
    with pytest.raises(ConfigError, match="torchvision was built for another torch.*nms.*constraints.txt"):
        make_backbone("convnext_tiny")


@pytest.mark.parametrize("name", ["plain", "vit", "swin"])
def test_last_four_maps_channels_first(timm, name):
    backbone = make_backbone(name)
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert backbone.channels == [6, 8, 10, 12]
    assert [tuple(m.shape) for m in maps] == [(2, 6, 16, 16), (2, 8, 8, 8), (2, 10, 4, 4), (2, 12, 2, 2)]
    accepted = {"vit": {"dynamic_img_size": True}, "swin": {"strict_img_size": False}}.get(name, {})
    assert timm.calls[-1] == (name, accepted)


def test_unknown_timm_model_names_near_ones(timm):
    with pytest.raises(ConfigError, match="got 'vti'.*near: vit"):
        make_backbone("vti")


def test_whole_model_on_a_timm_backbone(timm):
    config = ModelConfig(tasks=[make_task("edge").spec()], backbone="swin", width=16, blocks=1)
    out = create_model(config).eval()(torch.randn(1, 3, 40, 72))
    assert out.final["edge"].shape == (1, 1, 40, 72)
