"""Every file in configs/ is a configuration, survives saving, and describes a model that can be built; the
published runs have the published values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dmtl.models import DiffusionMTL, MultiTaskBaseline, create_model
from dmtl.tasks import make_task
from dmtl.train.claim import claim_of
from dmtl.train.config import RunConfig
from dmtl.train.presets import demo_config, recipe
from dmtl.train.toml import read_config, read_methods, write_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.toml"))
METHODS = {"feature": "feature", "prediction": "prediction", "mtpsl": "none", "mtl": "none", "stl": "none"}
CONSISTENCY = {"pascal": 1.0, "nyud13": 2.0, "cityscapes": 1.0}  # of the runs of MTPSL
PUBLISHED_RUNS = [
    (data, labels, method)
    for data in ("pascal", "nyud13", "cityscapes")
    for labels in ("one-label", "random-labels")
    for method in METHODS
    if (data, labels) != ("cityscapes", "random-labels")  # there is no such split
]
PUBLISHED = {  # of the released run, "section.key"
    "data.resize": False, "data.scale": (0.5, 2.0), "data.flip": True, "data.photometric": True,
    "model.backbone": "resnet18", "model.backbone_width": 64, "model.width": 512, "model.decoder_blocks": 2,
    "model.blocks": 4, "model.heads": 4, "model.mlp_ratio": 4, "model.token_reduction": 4,
    "model.steps": 2, "model.beta_start": 1e-3, "model.beta_end": 1e-2, "model.betas": None,
    "model.signal_scale": 1, "model.sampler": "ancestral", "model.chain_init": "default",
    "model.residual": False,
    "model.detach_signal": False, "model.detach_condition": True,
    "optim.backbone_weights": "resnet18.pth", "optim.optimizer": "adam", "optim.lr": 2e-5,
    "optim.backbone_lr": 1, "optim.layer_decay": 1, "optim.mtdnet_lr": 1, "optim.mtdnet_start": 0,
    "optim.freeze": [], "optim.freeze_bn": False, "optim.ema": 0, "optim.weight_decay": 1e-6,
    "optim.clip": 10, "optim.schedule": "poly", "optim.schedule_every": "epoch", "optim.power": 0.9,
    "optim.final_lr": 0, "optim.warmup": 0, "optim.initial_weight": 0.5, "optim.weighting": "fixed",
    "optim.precision": "fp32", "log.eval_every": 1000, "log.patience": 0,
}  # fmt: skip
BY_DATA = {
    "pascal": {"data.size": (512, 512), "optim.epochs": 100, "optim.batch_size": 6, "optim.task_weights": {}},
    "nyud13": {
        "data.size": (288, 384), "optim.epochs": 200, "optim.batch_size": 4,
        "optim.task_weights": {"semseg": 1.0, "depth": 0.6, "normals": 1.0},
    },
}  # fmt: skip


def get(config: RunConfig, key: str):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def differences(one: RunConfig, other: RunConfig) -> set[str]:
    """Keys in which two configurations differ."""
    one, other = dataclasses.asdict(one), dataclasses.asdict(other)
    found = set()
    for key, value in one.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}" for name in value if value[name] != other[key][name]}
        elif value != other[key]:
            found.add(key)
    return found


def test_configs_exist():
    runs = {"-".join(run) for run in PUBLISHED_RUNS}
    assert {path.stem for path in CONFIGS.glob("*.toml")} == runs | {
        "camvid-one-label",
        "nyud-one-label",
        "scenes-one-label",
        "six-tasks",
        "six-tasks-skip",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config(path, tmp_path):
    config = read_config(path)
    write_config(config, tmp_path / "saved.toml")
    assert read_config(tmp_path / "saved.toml") == config
    with torch.device("meta"):
        model = create_model(dataclasses.replace(config.model, tasks=[make_task("normals").spec()]))
    assert isinstance(model, MultiTaskBaseline if config.model.diffusion == "none" else DiffusionMTL)


@pytest.mark.parametrize("name", ["nyud-one-label", "nyud-random-labels"])
def test_tables_describe_models_that_can_be_built(name):
    path = CONFIGS / "claims" / f"{name}.toml"
    config, claim = read_config(path), claim_of(read_config(path), read_methods(path))
    assert config.out == f"runs/{name}" and claim.baseline == "mtl"
    for method in claim.methods.values():
        model = dataclasses.replace(method.config.model, tasks=[make_task("normals").spec()])
        kind = MultiTaskBaseline if model.diffusion == "none" else DiffusionMTL
        with torch.device("meta"):
            assert isinstance(create_model(model), kind)
        expected = {"model.diffusion", "model.without", "model.steps", "optim.objectives"}
        assert differences(method.config, config) <= expected


@pytest.mark.parametrize("run", PUBLISHED_RUNS, ids="-".join)
def test_published_values(run):
    data, _labels, method = run
    config = read_config(CONFIGS / f"{'-'.join(run)}.toml")
    for key, value in (PUBLISHED | BY_DATA.get(data, {})).items():
        assert get(config, key) == value, key
    assert (config.data.root, config.model.diffusion) == (data, METHODS[method])
    assert config.optim.objectives == ({"mtpsl": CONSISTENCY[data]} if method == "mtpsl" else {})
    assert config.out.startswith(f"runs/{'-'.join(run)}")


@pytest.mark.parametrize("run", PUBLISHED_RUNS, ids="-".join)
def test_a_run_differs_from_its_base_as_its_name_says(run):
    data, labels, method = run
    path = CONFIGS / f"{'-'.join(run)}.toml"
    config, base = read_config(path), read_config(CONFIGS / "bases" / f"{data}.toml")
    expected = {"out"}
    if METHODS[method] != base.model.diffusion:
        expected.add("model.diffusion")
    if method == "mtpsl":
        expected.add("optim.objectives")
    assert config.data.labels == labels
    expected |= {"data.labels"} if labels != base.data.labels else set()
    if method == "stl":
        assert (config.data.tasks, config.data.label_tasks) == (["semseg"], None)
        expected.add("data.tasks")
    assert differences(config, base) == expected
    code = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(code) <= 8


def test_loss_weights_of_the_released_run_are_the_tasks_own():
    own = {name: make_task(name, **({"classes": 3} if name in ("semseg", "human_parts") else {})).weight
           for name in ("semseg", "human_parts", "sal", "normals", "edge")}  # fmt: skip
    assert own == {"semseg": 1, "human_parts": 2, "sal": 5, "normals": 10, "edge": 50}


def test_the_recipe_is_written_down_once():
    assert differences(read_config(CONFIGS / "bases" / "recipe.toml"), recipe()) == set()
    data = ("root", "tasks", "labels", "label_tasks", "size", "scale", "train_count", "val_count")
    expected = {"out", *(f"data.{key}" for key in data)}
    for name in ("camvid-one-label", "nyud-one-label", "scenes-one-label"):
        assert differences(read_config(CONFIGS / f"{name}.toml"), recipe()) <= expected, name
    assert differences(read_config(CONFIGS / "claims" / "nyud.toml"), recipe()) <= expected | {
        "optim.backbone_weights"
    }


def test_the_demo_is_the_scenes_configuration_cut_short():
    demo, full = demo_config(), read_config(CONFIGS / "scenes-one-label.toml")
    assert demo.model == full.model
    assert dataclasses.replace(demo.optim, steps=full.optim.steps) == full.optim
    assert dataclasses.replace(demo.data, val_count=full.data.val_count) == full.data
