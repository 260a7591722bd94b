"""docs/training.md: its configuration is read, its sweep runs, names exist (its commands: test_readme.py)."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path

import pytest

from dmtl.cli import COMMANDS
from dmtl.data import export_shards, open_dataset
from dmtl.models import ModelConfig
from dmtl.train import toml
from dmtl.train.claim import claim_of
from dmtl.train.config import DataConfig, ExecutionConfig, LogConfig, OptimConfig, RunConfig
from dmtl.train.setup import open_data
from tests.fixtures.sources import LINES, ROOMS, write_source

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "optim": OptimConfig,
    "execution": ExecutionConfig,
    "log": LogConfig,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_toml(tmp_path, monkeypatch):
    text, sources, table = blocks("toml")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.toml").write_text(text.replace('extends = "', 'extends = "configs/'))
    config = toml.read_config(tmp_path / "mine.toml")
    assert (config.optim.lr, config.optim.task_weights, config.optim.epochs) == (1e-5, {"edge": 25}, 100)
    (tmp_path / "sources.toml").write_text(sources.replace('extends = "', 'extends = "configs/'))
    config = toml.read_config(tmp_path / "sources.toml")
    assert [(s.name, s.weight) for s in config.data.sources] == [
        ("nyud", 2),
        ("bsds", 1),
        ("kitchens", 1),
        ("streets", 1),
    ]
    write_source(tmp_path / "nyud", {**ROOMS, "edge": {"kind": "binary"}})
    write_source(tmp_path / "bsds", LINES)
    write_source(tmp_path / "kitchens" / "nyud", ROOMS)
    for split in ("train", "val"):
        export_shards(open_dataset(tmp_path / "kitchens" / "nyud", split), tmp_path / "streets", 1)
    monkeypatch.chdir(tmp_path)
    data = open_data(config.data)
    assert list(data.tasks) == ["semseg", "depth", "edge"] and len(data.train) == 24
    (tmp_path / "table.toml").write_text(table.replace('extends = "', 'extends = "configs/claims/'))
    claim = claim_of(toml.read_config(tmp_path / "table.toml"), toml.read_methods(tmp_path / "table.toml"))
    assert list(claim.methods) == ["stl", "mtl", "mtl-equal-time", "feature"] and claim.baseline == "mtl"


def test_named_keys_and_files_exist():
    """Every `section.key`, and every key that stands alone where a section is spoken of."""
    for section, key in re.findall(r"`(data|model|optim|execution|log)\.(?!jsonl)(\w+)", PAGE):
        assert key in {f.name for f in dataclasses.fields(SECTIONS[section])}, f"{section}.{key}"
    own = PAGE.split("## Learning rates")[1].split("\n## ")[0]
    optim = {f.name for f in dataclasses.fields(OptimConfig)} | {"poly", "cosine", "step", "constant"}
    for key in re.findall(r"`(\w+)(?: = [\d.]+)?`", own):
        assert key in optim, key
    for path in re.findall(r"configs/[\w-]+\.toml", PAGE):
        assert (ROOT / path).is_file(), path
    assert set(re.findall(r"\bdmtl (\w+)", PAGE)) <= set(COMMANDS)


def test_sweep(tmp_path, monkeypatch):
    """The example as printed, with a stand-in for Optuna that asks for one trial of a short run."""
    [example] = blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/sweep").mkdir(parents=True)
    read = toml.read_config

    def short(path):
        config = read(ROOT / path)
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, size=(32, 32), train_count=12, val_count=2),
            model=dataclasses.replace(config.model, width=8, heads=2, backbone_width=4),
            optim=dataclasses.replace(config.optim, steps=1, batch_size=2, precision="fp32"),
        )

    monkeypatch.setattr(toml, "read_config", short)
    train_baseline(short("configs/scenes-one-label.toml"))
    trial, found = types.SimpleNamespace(number=7), []
    trial.suggest_float = lambda name, low, high, log: (low * high) ** 0.5
    trial.suggest_categorical = lambda name, choices: choices[0]
    optuna = types.ModuleType("optuna")
    study = types.SimpleNamespace(optimize=lambda objective, n_trials: found.append(objective(trial)))
    optuna.create_study = lambda direction: study
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    exec(compile(example, "docs/training.md", "exec"), {})
    [delta] = found
    assert isinstance(delta, float) and -1000 < delta < 1000
    config = read(tmp_path / "runs/optuna/7/config.toml")
    assert (config.optim.lr, config.model.steps, config.log.baseline) == (
        pytest.approx(1e-3),
        1,
        "runs/sweep/mtl-0",
    )


def train_baseline(config: RunConfig) -> None:
    from dmtl.train.trainer import Trainer

    model = dataclasses.replace(config.model, diffusion="none")
    Trainer(dataclasses.replace(config, out="runs/sweep/mtl-0", model=model)).fit()
