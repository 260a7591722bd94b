"""Whole runs on ten tiny images: what they write, that they repeat, that they go on where they stopped."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import DiffusionMTL, MultiTaskBaseline, load_model
from dmtl.ops import _checks
from dmtl.train.log import RunLog
from dmtl.train.setup import training_loader
from dmtl.train.toml import read_config, write_config
from dmtl.train.trainer import Trainer
from tests.train.conftest import small_run, without_time

TASKS = ["semseg", "edge", "heat"]


def weights(out) -> bytes:
    return (Path(out) / "model" / "model.safetensors").read_bytes()


def log_of(out) -> list[dict]:
    return without_time(RunLog.read(Path(out) / "log.jsonl"))


class Stopped(Exception):
    pass


def stop_at(step: int):
    def on_step(done, steps, loss):
        if done == step:
            raise Stopped

    return on_step


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """One uninterrupted run that others are compared with: its configuration and metrics."""
    torch.set_num_threads(1)
    config = small_run(images, tmp_path_factory.mktemp("finished") / "run")
    return config, Trainer(config).run()


def test_what_a_run_writes(finished):
    config, metrics = finished
    out = Path(config.out)
    assert sorted(os.listdir(out)) == [
        "checkpoints",
        "config.toml",
        "labels.csv",
        "log.jsonl",
        "metrics.json",
        "model",
    ]
    assert read_config(out / "config.toml") == config
    rows = RunLog.read(out / "log.jsonl")
    assert [(r["event"], r["step"]) for r in rows] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
        ("train", 4),
        ("train", 5),
        ("train", 6),
        ("eval", 6),
    ]
    assert all(math.isfinite(r["loss"]) and r["loss/grad_norm"] > 0 for r in rows if r["event"] == "train")
    assert [r["seconds"] for r in rows] == sorted(r["seconds"] for r in rows) and rows[0][
        "lr"
    ] == pytest.approx(5e-4)
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["step"] == 6 and summary["metrics"] == metrics == rows[-1]["metrics"]
    assert set(metrics) == {*TASKS, *(f"initial/{task}" for task in TASKS)}
    assert summary["primary"]["semseg"] == ["mIoU", metrics["semseg"]["mIoU"], True]
    model = load_model(out / "model")
    assert (
        isinstance(model, DiffusionMTL)
        and list(model.tasks) == TASKS
        and model.tasks["heat"].kind == "scalar"
    )


def test_training_learns(config_for):
    """The loss falls and every parameter moves (64 pixels: with a single token attention has no say)."""
    trainer = Trainer(
        config_for(
            optim=dict(steps=20, lr=3e-3), data=dict(labels="full", size=(64, 64)), log=dict(eval_every=99)
        )
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    losses = [row["loss"] for row in log_of(trainer.out) if row["event"] == "train"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])] == []


def test_two_runs_are_equal_to_the_last_bit(finished, config_for):
    config, metrics = finished
    again = config_for("again", optim=dict(deterministic=True))
    torch.manual_seed(999)  # nothing depends on the global generator
    assert Trainer(again).run() == metrics
    assert weights(again.out) == weights(config.out) and log_of(again.out) == log_of(config.out)
    other = config_for("other", optim=dict(seed=4))
    Trainer(other).run()
    assert weights(other.out) != weights(config.out)


def test_loader_workers_change_nothing(finished, config_for):
    config = config_for("workers", data=dict(workers=2, cache=False))
    Trainer(config).run()
    assert weights(config.out) == weights(finished[0].out)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
def test_resumed_run_equals_the_uninterrupted_one(finished, config_for, step):
    """Stopped after any step: before the first checkpoint, at one, past one, at the end."""
    config = config_for("stopped")
    with pytest.raises(Stopped):
        Trainer(config, on_step=stop_at(step)).run()
    torch.manual_seed(step)
    resumed = Trainer(config, resume=True)
    assert resumed.step == (step - 1) // 2 * 2  # the callback comes before the checkpoint
    assert resumed.run() == finished[1]
    assert weights(config.out) == weights(finished[0].out) and log_of(config.out) == log_of(finished[0].out)


@pytest.mark.parametrize(
    "options",
    [
        dict(ema=0.9, mtdnet_lr=0.5, optimizer="adam"),
        dict(precision="bf16", mtdnet_start=0.5),
        dict(precision="fp16", clip=0.0),
    ],
)
def test_resume_with_every_kind_of_state(config_for, options):
    whole, stopped = (config_for(name, optim=options) for name in ("whole", "stopped"))
    Trainer(whole).run()
    with pytest.raises(Stopped):
        Trainer(stopped, on_step=stop_at(5)).run()
    Trainer(stopped, resume=True).run()
    assert weights(stopped.out) == weights(whole.out)


def test_killed_inside_a_checkpoint_write(finished, config_for):
    """SIGKILL between the second checkpoint's writing and its
    rename: the first holds, the end is the same."""
    config = config_for("killed")
    write_config(config, Path(config.out).parent / "killed.toml")
    script = f"""
import os, signal, torch
torch.set_num_threads(1)
from dmtl.train.toml import read_config
from dmtl.train.trainer import Trainer
replace, seen = os.replace, []
def kill(source, target):
    seen.append(target)
    if sum(str(t).endswith("last.pt") for t in seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kill
Trainer(read_config({str(Path(config.out).parent / "killed.toml")!r})).run()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = Trainer(config, resume=True)
    assert resumed.step == 2
    resumed.run()
    assert weights(config.out) == weights(finished[0].out) and log_of(config.out) == log_of(finished[0].out)


def test_resuming_a_finished_run_evaluates_it_again(finished):
    config, metrics = finished
    before, rows = weights(config.out), log_of(config.out)
    assert Trainer(config, resume=True).run() == metrics
    assert weights(config.out) == before and log_of(config.out) == [*rows, rows[-1]]
    (Path(config.out) / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(ConfigError, match="already holds a run; choose another out, or --resume"):
        Trainer(finished[0])


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("optim", "lr", 0.5),
        ("optim", "seed", 9),
        ("model", "width", 24),
        ("data", "labels", "full"),
        ("data", "tasks", ["edge"]),
    ],
)
def test_resume_with_another_configuration(finished, section, key, value):
    config = finished[0]
    changed = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **{key: value})}
    )
    with pytest.raises(
        CheckpointError, match=rf"last\.pt: belongs to another configuration: {section}\.{key} was "
    ):
        Trainer(changed, resume=True)


def test_resume_from_a_torn_checkpoint(config_for):
    config = config_for(optim=dict(steps=2))
    trainer = Trainer(config)
    trainer.run()
    trainer.checkpoint.write_bytes(trainer.checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="last.pt: damaged or not a training checkpoint"):
        Trainer(config, resume=True)


def test_full_disk_at_a_checkpoint_keeps_the_one_before(config_for, monkeypatch):
    config, save, saves = config_for(), torch.save, []

    def full(content, path):
        saves.append(path)
        if len(saves) == 2:
            raise RuntimeError(
                "[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"
            )
        save(content, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write .*last.pt: .*failed writing file"):
        Trainer(config).run()
    resumed = Trainer(config, resume=True)
    assert resumed.step == 2 and os.listdir(resumed.checkpoint.parent) == ["last.pt"]


@pytest.mark.parametrize(
    "options",
    [
        dict(model=dict(diffusion="none")),
        dict(model=dict(diffusion="none"), data=dict(tasks=["heat"])),
        dict(model=dict(diffusion="prediction", residual=True)),
        dict(model=dict(detach_signal=True, token_reduction=2)),
    ],
)
def test_mechanisms_and_baselines(config_for, options):
    config = config_for(optim=dict(steps=2), **options)
    metrics = Trainer(config).run()
    model = load_model(Path(config.out) / "model")
    baseline = config.model.diffusion == "none"
    assert isinstance(model, MultiTaskBaseline if baseline else DiffusionMTL)
    tasks = config.data.tasks or TASKS
    assert list(model.tasks) == tasks
    assert set(metrics) == ({*tasks} if baseline else {*tasks, *(f"initial/{t}" for t in tasks)})
    assert all(math.isfinite(row["loss"]) for row in log_of(config.out) if row["event"] == "train")


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.1), ("fp16", 0.3)])
def test_half_precision_follows_single(finished, config_for, precision, tolerance):
    """fp16 may skip its first steps, while the scale of its gradients comes down to what it can hold."""
    config = config_for(optim=dict(precision=precision))
    trainer = Trainer(config)
    trainer.run()
    ours, theirs = (
        [r["loss"] for r in log_of(c.out) if r["event"] == "train"] for c in (config, finished[0])
    )
    assert ours == pytest.approx(theirs, rel=tolerance) and ours != theirs
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in trainer.model.parameters())


def test_fp16_skips_a_step_that_overflows(config_for):
    trainer = Trainer(config_for(optim=dict(precision="fp16")))
    batch = next(training_loader(trainer.config, trainer.data).stream(0))
    weight = trainer.model.train().initial.embed.weight
    before = weight.detach().clone()
    for scale, skipped in ((1e30, True), (1.0, False)):
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer._train_step(batch, 1e-3)
        assert torch.equal(weight, before) == skipped and (trainer.scaler.get_scale() < scale) == skipped


def test_late_mtdnet(config_for):
    """Before its start MTDNet stands still and only the initial losses are logged."""
    trainer = Trainer(config_for(optim=dict(steps=4, mtdnet_start=0.5, weight_decay=0.0)))
    start = {name: p.detach().clone() for name, p in trainer.model.mtdnet.named_parameters()}
    moved = []
    trainer.on_step = lambda *_: moved.append(
        any(not torch.equal(p, start[name]) for name, p in trainer.model.mtdnet.named_parameters())
    )
    trainer.run()
    assert moved == [False, False, True, True]
    rows = [row for row in log_of(trainer.out) if row["event"] == "train"]
    assert [any(key.startswith("loss/initial/") for key in row) for row in rows] == [False, False, True, True]


def test_tensorboard(config_for):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_for(optim=dict(steps=2), log=dict(tensorboard=True))
    Trainer(config).run()
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    logged = [row["loss"] for row in log_of(config.out) if row["event"] == "train"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(logged)
    assert "eval/metrics/semseg/mIoU" in events.Tags()["scalars"]


def test_on_step_is_told_the_progress(config_for):
    calls = []
    Trainer(config_for(optim=dict(steps=3)), on_step=lambda *call: calls.append(call)).run()
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)] and all(
        math.isfinite(call[2]) for call in calls
    )


@pytest.mark.parametrize("options", [dict(), dict(ema=0.9), dict(precision="fp16")])
def test_a_step_waits_for_nothing(config_for, monkeypatch, options):
    """No tensor is read by the host inside a step; on a GPU each such reading would wait for the device."""
    trainer = Trainer(config_for(optim=options))
    batch = next(training_loader(trainer.config, trainer.data).stream(0))
    trainer.model.train()
    monkeypatch.setattr(_checks, "check_values", lambda *_: None)  # reads CPU tensors alone

    def refuse(name):
        def reading(self, *_):
            raise AssertionError(f"Tensor.{name} inside a training step")

        return reading

    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse(name))
    parts = trainer._train_step(batch, 1e-3)
    monkeypatch.undo()
    assert math.isfinite(float(parts["loss"])) and "grad_norm" in parts
