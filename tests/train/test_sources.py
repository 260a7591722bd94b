"""One run on several data sets: its configuration, labels, metrics by source, resuming, several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmtl.data import LabelMatrix, Source, eval_transform, make_loader, open_sources
from dmtl.errors import CheckpointError, ConfigError
from dmtl.evaluation.scoring import score
from dmtl.models import create_model
from dmtl.train.claim import claim_of
from dmtl.train.config import DataConfig, RunConfig
from dmtl.train.identity import identity, what_changed
from dmtl.train.plan import plan
from dmtl.train.setup import open_data
from dmtl.train.toml import read_config, write_config
from dmtl.train.trainer import Trainer
from tests.fixtures.sources import write_three
from tests.train import sources_worker
from tests.train.conftest import small_run
from tests.train.test_distributed import ROOT, torchrun

TASKS = ["semseg", "depth", "edge"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return write_three(tmp_path_factory.mktemp("sources"))


def three(roots: dict[str, Path], **weights: float) -> list[Source]:
    rename = {"lines": {"boundaries": "edge"}}
    return [
        Source(str(root), weight=weights.get(name, 1.0), rename=rename.get(name, {}))
        for name, root in roots.items()
    ]


@pytest.fixture
def config_for(roots, tmp_path):
    """config_for("name", data=dict(...), weights=dict(...), ...) -> a run on the three sources."""

    def config(name: str = "run", *, weights={}, data={}, **options) -> RunConfig:
        data = {"root": "", "sources": three(roots, **weights), "labels": "full"} | data
        return small_run(Path(), tmp_path / name, data=data, **options)

    return config


# configuration


def test_a_file_survives_saving(config_for, tmp_path):
    config = config_for(weights=dict(rooms=2.0))
    write_config(config, tmp_path / "c.toml")
    assert read_config(tmp_path / "c.toml") == config
    assert config.data.root == "" and config.data.sources[1].name == "lines"
    assert DataConfig().root == "scenes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[data]\nroot = "scenes"\n[[data.sources]]\nroot = "a"',
            "data.root and data.sources exclude each other",
        ),
        ('[[data.sources]]\nroot = "x/a"\n[[data.sources]]\nroot = "y/a"', "x/a and y/a are both called 'a'"),
        (
            '[[data.sources]]\nroot = "a"\nwieght = 2',
            r"data.sources\[0\].wieght is not a known key; did you mean",
        ),
        ('[[data.sources]]\nname = "a"', "a source has no root"),
        ("data.sources = 3", "data.sources must be a list"),
    ],
)
def test_refused(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"c.toml: .*{message}"):
        read_config(path)


def test_a_configuration_is_no_root(tmp_path):
    with pytest.raises(ConfigError, match="data.root is the configuration c.toml, expected a data set"):
        open_data(DataConfig(root="c.toml"))


def test_a_change_of_a_source_is_named(config_for):
    before, after = config_for(), config_for(weights=dict(lines=3.0))
    assert what_changed(identity(before), before) == ""
    assert what_changed(identity(before), after).startswith("data.sources was ")


# data


def test_labels_of_the_union(config_for):
    for labels in ("one-label", "random-labels"):
        data = open_data(config_for(data=dict(labels=labels)).data)
        assert list(data.tasks) == TASKS and len(data.train) == 15 and len(data.val) == 7
        exists = data.train.available()
        assert data.labels.matrix.any(1).all() and not (data.labels.matrix & ~exists.matrix).any()
        single = open_data(config_for(data=dict(labels=labels, tasks=["depth"])).data)
        assert list(single.train.sources) == ["rooms"]
        assert single.labels == data.labels.subset(single.train.ids, ["depth"])


def test_a_table_of_labels_names_images_by_source(config_for, tmp_path):
    exists = open_data(config_for().data).train.available()
    shown = LabelMatrix(exists.ids, exists.tasks, exists.matrix & [[n % 2 == 0] for n in range(15)])
    shown.write_csv(tmp_path / "labels.csv")
    assert open_data(config_for(data=dict(labels=str(tmp_path / "labels.csv"))).data).labels == shown


def test_a_claim_learns_each_task_of_the_union(config_for):
    section = {"stl": {"single_task": True, "model": {"diffusion": "none"}}, "mtl": {}}
    assert claim_of(config_for(), section).methods["stl"].parts.keys() == set(TASKS)


def test_a_plan_counts_sources(config_for):
    facts = plan(config_for(weights=dict(rooms=2.0, street=0.4), optim=dict(batch_size=3)))
    assert facts["data"]["sources"] == [
        {"name": "rooms", "train": 6, "val": 3, "in_step": 2.0, "labels": {"semseg": 6, "depth": 6}},
        {"name": "lines", "train": 4, "val": 2, "in_step": 4 / 6, "labels": {"edge": 4}},
        {"name": "street", "train": 5, "val": 2, "in_step": 2 / 6, "labels": {"semseg": 5}},
    ]


def test_notes_on_labels_name_the_source(config_for, roots, tmp_path):
    copy = {**roots, "lines": Path(shutil.copytree(roots["lines"], tmp_path / "lines"))}
    (copy["lines"] / "boundaries" / "0.jpg").touch()
    for number in range(4, 6):
        (copy["lines"] / "boundaries" / f"{number}.png").unlink()
    data = open_data(config_for(data=dict(sources=three(copy))).data)
    notes: list[str] = []
    data.describe(config_for().data, notes.append)
    assert notes[0] == "warning: no validation image has a label of edge, so it is not scored"
    assert notes[1].startswith("warning: lines: 1 file in edge/ is not read: 0.jpg")
    assert len(notes) == 2
    for path in (copy["lines"] / "boundaries").glob("*.png"):
        Image.new("L", (40, 24), 255).save(path)
    with pytest.raises(ConfigError, match="lines: every pixel of the 4 visible labels of edge is ignored"):
        data.describe(config_for().data, notes.append)


# scores


def test_scores_of_each_source_are_those_of_the_source_alone(config_for):
    config = config_for(model=dict(diffusion="none"))
    data = open_data(dataclasses.replace(config.data, resize=False))  # each at its size
    torch.manual_seed(0)
    model = create_model(dataclasses.replace(config.model, tasks=[t.spec() for t in data.tasks.values()]))

    def scored(dataset, **options):
        return score(
            model, make_loader(dataset, None, eval_transform(), batch_size=1, shuffle=False), **options
        )

    found: dict = {}
    every = scored(data.val, on_sources=found.update)
    assert list(found) == ["rooms", "lines", "street"]
    assert {name: list(metrics) for name, metrics in found.items()} == {
        "rooms": ["semseg", "depth"],
        "lines": ["edge"],
        "street": ["semseg"],
    }
    for source in config.data.sources:
        own = open_sources([source], "val")  # with its own order of classes
        assert scored(own, tasks=own.tasks) == found[source.name]
    assert every["depth"] == found["rooms"]["depth"] and every["edge"] == found["lines"]["edge"]
    accuracy = [found[name]["semseg"]["pixel_acc"] for name in ("rooms", "street")]
    assert min(accuracy) < every["semseg"]["pixel_acc"] < max(accuracy)


def test_a_run_writes_scores_by_source(config_for):
    config = config_for(weights=dict(lines=2.5), optim=dict(steps=2), data=dict(resize=False))
    trainer = Trainer(config)
    metrics = trainer.fit()
    summary = json.loads((trainer.out / "metrics.json").read_text())
    row = json.loads((trainer.out / "log.jsonl").read_text().splitlines()[-1])
    assert summary["sources"] == row["sources"] and set(row["sources"]) == {"rooms", "lines", "street"}
    assert set(row["sources"]["rooms"]) == {"semseg", "initial/semseg", "depth", "initial/depth"}
    assert metrics["edge"] == row["sources"]["lines"]["edge"]
    assert read_config(trainer.out / "config.toml") == config
    with pytest.raises(CheckpointError, match="data.sources was"):
        Trainer(config_for(optim=dict(steps=2)), resume=True)


# resuming, processes


@pytest.fixture
def run(config_for, tmp_path) -> Path:
    """The file of a run with weights, caches on disk and batch norms that do not learn."""
    config = config_for(
        weights=dict(rooms=1.5, lines=2.0),
        data=dict(cache_dir=str(tmp_path / "cache")),
        optim=dict(steps=6, freeze_bn=True, ema=0.9),
        log=dict(eval_every=100),
    )
    write_config(config, tmp_path / "run.toml")
    return tmp_path / "run.toml"


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(run, tmp_path):
    whole = sources_worker.train(str(run), str(tmp_path / "whole"), str(tmp_path / "a"))
    command = [sys.executable, sources_worker.__file__, run, tmp_path / "killed", tmp_path / "b", "5"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = sources_worker.train(str(run), str(tmp_path / "killed"), str(tmp_path / "b"))
    assert whole["start"] == 0 and again["start"] in (2, 4)  # a checkpoint before
    for name, value in whole["weights"].items():
        assert torch.equal(value, again["weights"][name]), name
    assert whole["metrics"] == again["metrics"] and whole["sources"] == again["sources"]


@pytest.mark.slow
def test_three_processes_equal_one(run, tmp_path):
    one = sources_worker.train(str(run), str(tmp_path / "one"), str(tmp_path / "a"))
    torchrun(3, sources_worker.__file__, run, tmp_path / "three", tmp_path / "b", -1)
    ranks = [torch.load(f"{tmp_path / 'b'}-{rank}.pt", weights_only=False) for rank in range(3)]
    for name, value in one["weights"].items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=0, atol=1e-5, msg=name)
    assert all(rank["sources"] == ranks[0]["sources"] for rank in ranks)
    for source, metrics in one["sources"].items():
        for task, values in metrics.items():
            for metric, value in values.items():
                got = ranks[0]["sources"][source][task][metric]
                assert got == pytest.approx(value, rel=1e-3, abs=1e-3, nan_ok=True), (source, task, metric)
