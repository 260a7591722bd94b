"""Every file in configs/ is a configuration, survives saving, and describes a model that can be built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dmtl.models import DiffusionMTL, build_model
from dmtl.tasks import make_task
from dmtl.train.presets import demo_config
from dmtl.train.toml import read_config, write_config

FILES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))


def test_configs_exist():
    assert {"camvid-one-label", "published-feature", "scenes-one-label"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path, tmp_path):
    config = read_config(path)
    write_config(config, tmp_path / "saved.toml")
    assert read_config(tmp_path / "saved.toml") == config
    with torch.device("meta"):
        model = build_model(dataclasses.replace(config.model, tasks=[make_task("normals").spec()]))
    assert isinstance(model, DiffusionMTL)


def test_published_hyper_parameters():
    """The figures of the released run."""
    config = read_config(next(path for path in FILES if path.stem == "published-feature"))
    optim, model = config.optim, config.model
    assert (optim.optimizer, optim.lr, optim.weight_decay, optim.clip) == ("adam", 2e-5, 1e-6, 10)
    assert (optim.power, optim.warmup, optim.batch_size, optim.initial_weight) == (0.9, 0, 6, 0.5)
    assert (config.data.size, config.data.scale, config.data.resize) == ((512, 512), (0.5, 2), False)
    assert (model.backbone, model.width, model.heads, model.blocks) == ("resnet18", 512, 4, 4)
    assert (model.steps, model.beta_start, model.beta_end) == (2, 1e-3, 1e-2)
    assert (model.chain_init, model.residual, model.eta, model.token_reduction) == ("default", False, 1, 4)
    assert (model.signal_scale, model.detach_signal, model.detach_condition) == (1, False, True)
    assert (optim.mtdnet_lr, optim.mtdnet_start, optim.ema) == (1, 0, 0)


def test_the_demo_is_the_scenes_configuration_cut_short():
    demo, full = demo_config(), read_config(next(path for path in FILES if path.stem == "scenes-one-label"))
    assert demo.model == full.model
    assert dataclasses.replace(demo.optim, steps=full.optim.steps) == full.optim
    assert dataclasses.replace(demo.data, val_count=full.data.val_count) == full.data
