"""Lists, tables and inherited values of a training configuration, given on the command line."""

from __future__ import annotations

import pytest

from dmtl.cli.train import Train, parse_run
from dmtl.train.config import RunConfig

from .conftest import SHORT


def config_of(*words: object) -> RunConfig:
    words = [str(word) for word in words]
    return parse_run(Train, words, "train")[1]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "base.toml").write_text("[optim]\ntask_weights = {edge = 50, sal = 5}\nfreeze = ['mtdnet']\n")
    (tmp_path / "leaf.toml").write_text("extends = 'base.toml'\n[optim]\nlr = 0.5\n")
    return tmp_path / "leaf.toml"


def test_lists_and_flags():
    words = "--optim.freeze initial.backbone mtdnet --optim.milestones 0.1 0.5 --optim.freeze-bn"
    config = config_of(*words.split(), *["--model.betas", "0.1", "0.2", "--execution.micro-batch", "2"])
    assert config.optim.freeze == ["initial.backbone", "mtdnet"] and config.optim.freeze_bn
    assert config.optim.milestones == [0.1, 0.5] and config.model.betas == [0.1, 0.2]
    assert config.execution.micro_batch == 2
    assert config_of("--optim.milestones").optim.milestones == []


def test_task_weights():
    assert config_of("--optim.task-weights", "edge", 3, "sal", 4).optim.task_weights == {"edge": 3, "sal": 4}


def test_options_win_over_the_file_and_its_base(file):
    config = config_of(file, "--optim.task-weights", "edge", 3, "depth", 1)
    assert config.optim.task_weights == {"edge": 3, "sal": 5, "depth": 1}
    base = file.parent / "base.toml"
    base.write_text(base.read_text() + "objectives = {mtpsl = 2}\nweighting = 'dwa'\n")
    assert config_of(file, "--optim.lr", 1).optim.objectives == {"mtpsl": 2}
    assert config_of(file, "--optim.objectives", "mtpsl", 0).optim.objectives == {"mtpsl": 0}
    assert (config.optim.lr, config.optim.freeze) == (0.5, ["mtdnet"])
    assert config_of(file, "--optim.freeze").optim.freeze == []
    assert config_of(file).optim.task_weights == {"edge": 50, "sal": 5}


@pytest.mark.parametrize("words", [["edge"], ["edge", "much"], ["edge", "1", "sal"]])
def test_a_weight_without_a_number(dmtl, words):
    status, _, err = dmtl("train", "--optim.task-weights", *words)
    assert status == 2 and "--optim.task-weights: expected a number after every name" in err
    assert "--optim.task-weights NAME NUMBER ..." in err


@pytest.mark.parametrize(("option", "split"), [("train-count", "train"), ("val-count", "val")])
def test_counts_are_for_rendered_images(dmtl, data, file, option, split):
    """A folder has as many images as its split lists; a file that sets a count may still name a folder."""
    status, out, err = dmtl("train", "--data.root", data, f"--data.{option}", 2)
    message = f"--data.{option} is only for rendered images such as scenes, got {data}; "
    message += f"to use fewer images, list fewer in splits/{split}.txt"
    assert (status, out, err) == (2, "", f"dmtl train: {message}\n")
    assert config_of(f"--data.{option}", 2).data.root == "scenes"
    file.write_text("[data]\ntrain_count = 2\nval_count = 2\n")
    assert config_of(file, "--data.root", data).data.val_count == 2


MEASURED = dict(step_s=[0.2, 0.2, 0.2], read_s=0.1, again_s=0.05, evaluation_s=0.5, peak_bytes=500 << 20)
MEASURED |= dict(
    device="cpu", device_bytes=0, held_bytes=0, train_bytes=0.0, val_bytes=0.0, cache_limit=0, cores=2
)


def test_dry_run(dmtl, tmp_path, data, monkeypatch):
    """The plan of the run as it would be, and nothing on disk; what cannot run is one line, as without it.
    The measured steps are tests/train/test_plan.py's."""
    monkeypatch.setattr("dmtl.cli._plan.measure", lambda config: MEASURED)
    words = (
        "train",
        "--data.root",
        data,
        *SHORT,
        "--data.labels",
        "full",
        "--optim.freeze",
        "initial.backbone",
    )
    status, out, err = dmtl(*words, "--dry-run")
    assert (status, err) == (0, "")
    lines = {line[:20].strip(): " ".join(line[20:].split()) for line in out.splitlines()}
    assert lines["images"] == "4 for training, 4 of them labelled; 2 for validation"
    assert (
        lines["labels per image"] == "4 with 4" and lines["steps"] == "2 of 2 images, 2 an epoch (1 epochs)"
    )
    assert "frozen" in lines["encoder"] and "trained" in lines["cross blocks"]
    assert "forward" in out and "backward" in out
    assert lines["memory"] == "500 MiB resident"
    # two steps of two images in the one epoch, an evaluation of two images
    assert lines["a step"].startswith("400 ms on average: 200 ms to compute, 200 ms to load")
    assert (lines["evaluations"], lines["the whole run"]) == ("1 s in all", "1.8 s")
    assert list(tmp_path.iterdir()) == []
    status, out, err = dmtl("train", "--data.root", data, *SHORT, "--optim.freeze", "encoder", "--dry-run")
    assert (status, out) == (2, "") and "optim.freeze must name parts of the model" in err
