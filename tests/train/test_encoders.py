"""Runs on an EfficientNet-Lite: its weights, what is frozen, how fast each stage learns, the plan."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import create_model
from dmtl.models.work import count, flops
from dmtl.nn.backbone import make_backbone
from dmtl.train.optim import freeze, optimizer_for
from dmtl.train.plan import plan
from dmtl.train.setup import model_for, open_data
from dmtl.train.trainer import Trainer
from tests.models.cases import small_config

LITE = dict(backbone="efficientnet_lite0")


@pytest.fixture
def no_source(monkeypatch):
    """No package with weights, whatever is installed here."""
    monkeypatch.setattr("dmtl.train.setup.pretrained_source", lambda name: None)
    monkeypatch.setattr("dmtl.models.encoder_weights.pretrained_source", lambda name: None)


def test_auto_takes_random_weights_without_a_source(config_for, no_source):
    config = config_for(model=LITE, optim=dict(backbone_weights="auto"))
    data = open_data(config.data)
    plain = model_for(config_for(model=LITE, optim=dict(backbone_weights="")), data.tasks)
    assert same(model_for(config, data.tasks), plain)


def test_auto_without_a_source_says_what_it_costs(config_for, no_source, monkeypatch):
    said, full = [], dict(labels="full")
    Trainer(config_for(data=full, model=LITE, optim=dict(backbone_weights="auto")), say=said.append)
    assert any("random weights" in line and "dmtl[encoders]" in line for line in said), said
    said.clear()
    Trainer(config_for(data=full, model=LITE, optim=dict(backbone_weights="")), say=said.append)
    assert said == []


def test_imagenet_without_a_source_says_what_to_install(config_for, no_source):
    config = config_for(model=LITE, optim=dict(backbone_weights="imagenet"))
    with pytest.raises(ConfigError, match=r"pip install 'dmtl\[encoders\]'"):
        model_for(config, open_data(config.data).tasks)


@pytest.mark.parametrize("weights", ["imagenet", "auto"])
def test_published_weights_are_loaded(config_for, monkeypatch, weights):
    """Into the encoder alone; the rest is that of a model without them."""
    monkeypatch.setattr("dmtl.train.setup.pretrained_source", lambda name: "played")
    monkeypatch.setattr("dmtl.train.setup.load_pretrained", lambda encoder, name: fill(encoder, name))
    config = config_for(model=LITE, optim=dict(backbone_weights=weights))
    data = open_data(config.data)
    model, plain = model_for(config, data.tasks), model_for(config, data.tasks, weights=False)
    assert bool((model.initial.backbone.conv_stem.weight == 1).all())
    assert not same(model, plain)
    fill(plain.initial.backbone, "efficientnet_lite0")
    assert same(model, plain)


def fill(encoder, name):
    assert name == "efficientnet_lite0"
    torch.nn.init.ones_(encoder.conv_stem.weight)


def same(a, b) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_resumed_run_needs_no_weights(config_for, tmp_path):
    """It takes the checkpoint's, to the bit; a folder without a checkpoint needs the file."""
    encoder = make_backbone("resnet18", 4)
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    config = config_for(optim=dict(backbone_weights=str(tmp_path / "w.pth"), steps=2))
    straight = Trainer(config)
    assert torch.equal(straight.model.initial.backbone.conv1.weight, encoder.conv1.weight)
    straight.fit()
    (tmp_path / "w.pth").unlink()
    assert same(Trainer(config, resume=True).model, straight.model)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises((ConfigError, CheckpointError), match=r"w\.pth: no such file"):
        Trainer(config, resume=True)


def test_layer_decay_follows_the_stages(config_for):
    """The stem and seven stages of `blocks`; each 0.5 times as fast as its successor."""
    config = config_for(optim=dict(backbone_lr=0.4, layer_decay=0.5)).optim
    groups = optimizer_for(config, create_model(small_config(**LITE))).param_groups
    factors = {group["name"].removeprefix("initial.backbone."): group["factor"] for group in groups}
    expected = {f"blocks.{i}": 0.4 * 0.5 ** (6 - i) for i in range(7)} | {"stem": 0.4 * 0.5**7}
    assert {name: factors[name] for name in expected} == pytest.approx(expected)
    assert set(factors) - set(expected) == {"initial", "mtdnet"}


def test_freezing_a_stage(config_for):
    model = create_model(small_config(**LITE))
    names = freeze(config_for(optim=dict(freeze=["initial.backbone.blocks.0"])).optim, model)
    assert names and all(name.startswith("initial.backbone.blocks.0.") for name in names)
    held = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert held == names and len(held) == 6


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
def test_a_run(config_for, diffusion):
    """Trains, evaluates and saves; what is frozen keeps weights and statistics, all else moves."""
    config = config_for(
        model=LITE | dict(diffusion=diffusion),
        optim=dict(steps=2, backbone_weights="", freeze=["initial.backbone.blocks.0"], layer_decay=0.9),
    )
    trainer = Trainer(config)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert all(metrics for metrics in trainer.fit().values())
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    encoder = [name for name in before if name.startswith("initial.backbone.")]
    for name in encoder:
        assert (name in moved) == (not name.startswith("initial.backbone.blocks.0.")), name


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "efficientnet_lite2"])
def test_operations_are_those_that_torch_counts(backbone):
    """Depthwise convolutions included: 2 k^2 for each result."""
    encoder = make_backbone(backbone).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.randn(2, 3, 64, 96))
    parts = [p for p in count(small_config(backbone=backbone), (64, 96), 2) if p.layer.startswith("backbone")]
    assert flops(parts) == counter.get_total_flops()
    [first] = [p for p in parts if p.layer == "backbone.blocks.0.0.conv_dw"]
    assert first.flops == 2 * 9 * 32 * (2 * 32 * 48) and not any(p.winograd for p in parts)


def test_plan(config_for):
    """Parameters, frozen ones apart; the forward pass costs the same."""
    free = plan(config_for(model=LITE, optim=dict(backbone_weights="")))
    held = plan(config_for(model=LITE, optim=dict(backbone_weights="", freeze=["initial.backbone.blocks.0"])))
    whole = sum(p.numel() for p in make_backbone("efficientnet_lite0").parameters())
    assert free["parameters"]["encoder"] == {"trained": whole, "frozen": 0}
    block = sum(p.numel() for p in make_backbone("efficientnet_lite0").blocks[0].parameters())
    assert held["parameters"]["encoder"] == {"trained": whole - block, "frozen": block}
    assert held["flops"] == free["flops"]
