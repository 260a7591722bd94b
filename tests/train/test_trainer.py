"""Whole runs on ten tiny images: what they write, that they repeat, that they go on where they stopped."""

import dataclasses
import errno
import gzip
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmtl.errors import CheckpointError, ConfigError, DataError
from dmtl.evaluation.scoring import score
from dmtl.metrics.delta import delta_mtl
from dmtl.models import DiffusionMTL, MultiTaskBaseline, from_pretrained
from dmtl.tasks import Scalar
from dmtl.train import checkpoint
from dmtl.train.log import RunLog
from dmtl.train.setup import evaluation_loader, open_data
from dmtl.train.toml import read_config, write_config
from dmtl.train.trainer import RunStopped, Trainer
from tests.train.conftest import refuse_readings, small_run, without_time

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
    config = small_run(images, tmp_path_factory.mktemp("finished") / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return config, Trainer(config).fit()
    finally:
        torch.set_num_threads(threads)


def test_what_a_run_writes(finished):
    config, metrics = finished
    out = Path(config.out)
    assert sorted(os.listdir(out)) == [
        "best",
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
    model = from_pretrained(out / "model")
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
    trainer.fit()
    losses = [row["loss"] for row in log_of(trainer.out) if row["event"] == "train"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])] == []


def test_two_runs_are_equal_to_the_last_bit(finished, config_for):
    config, metrics = finished
    again = config_for("again", optim=dict(deterministic=True))
    torch.manual_seed(999)  # nothing depends on the global generator
    assert Trainer(again).fit() == metrics
    assert weights(again.out) == weights(config.out) and log_of(again.out) == log_of(config.out)
    other = config_for("other", optim=dict(seed=4))
    Trainer(other).fit()
    assert weights(other.out) != weights(config.out)


def test_loader_workers_change_nothing(finished, config_for):
    config = config_for("workers", data=dict(workers=2, cache=False))
    Trainer(config).fit()
    assert weights(config.out) == weights(finished[0].out)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
def test_resumed_run_equals_the_uninterrupted_one(finished, config_for, step):
    """Stopped after any step: before the first checkpoint, at one, past one, at the end."""
    config = config_for("stopped")
    with pytest.raises(Stopped):
        Trainer(config, on_step=stop_at(step)).fit()
    torch.manual_seed(step)
    resumed = Trainer(config, resume=True)
    assert resumed.step == (step - 1) // 2 * 2  # the callback comes before the checkpoint
    assert resumed.fit() == finished[1]
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
    Trainer(whole).fit()
    with pytest.raises(Stopped):
        Trainer(stopped, on_step=stop_at(5)).fit()
    Trainer(stopped, resume=True).fit()
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
from dmtl.train.trainer import RunStopped, Trainer
replace, seen = os.replace, []
def kill(source, target):
    seen.append(target)
    if sum(str(t).endswith(".pt") for t in seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kill
Trainer(read_config({str(Path(config.out).parent / "killed.toml")!r})).fit()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = Trainer(config, resume=True)
    assert resumed.step == 2
    resumed.fit()
    assert weights(config.out) == weights(finished[0].out) and log_of(config.out) == log_of(finished[0].out)


def test_resuming_a_finished_run_changes_nothing(finished):
    config, metrics = finished
    before, rows = weights(config.out), log_of(config.out)
    assert Trainer(config, resume=True).fit() == metrics
    assert weights(config.out) == before and log_of(config.out) == rows


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(ConfigError, match="already holds a run; choose another out, or resume it"):
        Trainer(finished[0])
    log = Path(finished[0].out) / "log.jsonl"
    log.rename(log.with_suffix(".kept"))
    with pytest.raises(ConfigError, match="already holds a run"):  # its checkpoints would be resumed from
        Trainer(finished[0])
    log.with_suffix(".kept").rename(log)


@pytest.mark.parametrize(
    ("section", "key", "value"),
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
        CheckpointError, match=rf"checkpoints: belongs to another configuration: {section}\.{key} was "
    ):
        Trainer(changed, resume=True)


def test_resume_past_a_torn_checkpoint(finished, config_for):
    """The newest is torn: the one before is used, it is said, and the end is the same."""
    config = config_for()
    with pytest.raises(Stopped):
        Trainer(config, on_step=stop_at(5)).fit()
    newest = max((Path(config.out) / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    said = []
    resumed = Trainer(config, resume=True, say=said.append)
    assert resumed.step == 2 and len(said) == 2 and f"{newest}: damaged" in said[1] and "step 2" in said[1]
    resumed.fit()
    assert weights(config.out) == weights(finished[0].out) and log_of(config.out) == log_of(finished[0].out)


def test_full_disk_at_a_checkpoint_keeps_the_one_before(config_for, monkeypatch):
    config, write, writes = config_for(), checkpoint._write_file, []

    def full(path, state):
        writes.append(path)
        if len(writes) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, state)

    monkeypatch.setattr(checkpoint, "_write_file", full)
    with pytest.raises(OSError, match="cannot write .*00000004.pt: No space left .*00000002.pt"):
        Trainer(config).fit()
    assert Trainer(config, resume=True).step == 2
    assert os.listdir(Path(config.out) / "checkpoints") == ["step-00000002.pt"]


def test_only_the_last_checkpoints_stay(finished, config_for):
    assert sorted(os.listdir(Path(finished[0].out) / "checkpoints")) == [
        "step-00000004.pt",
        "step-00000006.pt",
    ]
    config = config_for("one", log=dict(keep=1))
    Trainer(config).fit()
    assert os.listdir(Path(config.out) / "checkpoints") == ["step-00000006.pt"]


def test_the_best_evaluation_is_kept(config_for):
    """Delta_MTL is told against the first evaluation; the weights of the best one stay in `best`."""
    config = config_for(log=dict(eval_every=1))
    Trainer(config).fit()
    rows = [row for row in log_of(config.out) if row["event"] == "eval"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[0]["delta"] == 0
    best = max(rows, key=lambda row: row["delta"])
    kept = json.loads((Path(config.out) / "best" / "metrics.json").read_text())
    assert kept["step"] == best["step"] and kept["metrics"] == best["metrics"]
    assert kept["best"] == {"step": best["step"], "delta": best["delta"]}
    data = evaluation_loader(open_data(config.data))
    again = score(from_pretrained(Path(config.out) / "best"), data, initial=True)
    for task, values in best["metrics"].items():  # the file's layout, and so rounding, is another
        assert again[task] == pytest.approx(values, rel=1e-5)


def test_a_baseline_run_is_the_reference(finished, config_for):
    config = config_for("told", optim=dict(seed=4), log=dict(baseline=finished[0].out))
    metrics = Trainer(config).fit()
    tasks = from_pretrained(Path(config.out) / "model").tasks
    delta = [row["delta"] for row in log_of(config.out) if row["event"] == "eval"][-1]
    assert delta == pytest.approx(delta_mtl(metrics, finished[1], tasks))
    with pytest.raises(ConfigError, match="log.baseline must be a finished run .*nowhere: No such file"):
        Trainer(config_for("other", log=dict(baseline="nowhere")))


def test_patience_ends_a_run_early(config_for):
    """A learning rate of 0 makes no evaluation better than the first."""
    config = config_for(optim=dict(steps=50, lr=0.0), model=dict(eta=0.0), log=dict(eval_every=2, patience=3))
    trainer = Trainer(config)
    trainer.model.apply(lambda m: m.requires_grad_(False) if isinstance(m, torch.nn.BatchNorm2d) else None)
    trainer.fit()
    evaluated = [row["step"] for row in log_of(config.out) if row["event"] == "eval"]
    best = json.loads((trainer.out / "metrics.json").read_text())["best"]["step"]
    assert trainer.step == evaluated[-1] < 50 and evaluated.index(best) == len(evaluated) - 4
    before = weights(config.out)
    again = Trainer(config, resume=True)
    again.fit()
    assert again.step == trainer.step and weights(config.out) == before


def test_a_label_that_spoils_every_step_stops_the_run(config_for, monkeypatch):
    """Skipped steps are logged with task and sample names; after three in a row the run stops, saved."""
    monkeypatch.setattr(
        Scalar, "loss_of_map", lambda self, logits, label, factor: logits.mean((1, 2, 3)) * math.nan
    )
    config = config_for(data=dict(labels="full"), execution=dict(max_bad_steps=3), log=dict(eval_every=99))
    said, trainer = [], None
    trainer = Trainer(config, say=said.append)
    before = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    with pytest.raises(RunStopped, match="3 steps in a row .*execution.max_bad_steps.* step 3 is saved"):
        trainer.fit()
    rows = log_of(config.out)
    assert [(r["step"], r["reason"]) for r in rows if r["event"] == "skipped"] == [
        (1, "loss"),
        (2, "loss"),
        (3, "loss"),
    ]
    assert all(list(r["pairs"]) == ["heat"] and len(r["pairs"]["heat"]) == 4 for r in rows if "pairs" in r)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.state_dict().items())
    assert len(said) == 3 and "heat: i" in said[0]
    monkeypatch.undo()
    resumed = Trainer(config, resume=True)
    assert resumed.step == 3
    resumed.fit()
    assert json.loads((resumed.out / "metrics.json").read_text())["skipped_steps"] == 3


def test_an_unreadable_image_by_policy(config_for, images, tmp_path):
    """Raised by default; left out, told and logged where one may be; its count survives a resume."""
    root = shutil.copytree(images, tmp_path / "damaged")

    def damage(name):
        path = root / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:200])

    damage("i3")
    with pytest.raises(DataError, match="i3.png"):
        Trainer(config_for("raise", data=dict(root=str(root)))).fit()
    config, said = config_for("skip", data=dict(root=str(root), skip_corrupt=1)), []
    with pytest.raises(Stopped):
        Trainer(config, say=said.append, on_step=stop_at(5)).fit()
    rows = [row for row in log_of(config.out) if row["event"] == "corrupt"]
    assert rows and all(str(root / "images" / "i3.png") in row["message"] for row in rows)
    skips = [line for line in said if "skipped a sample" in line]
    assert len(skips) == len(rows)
    assert all(math.isfinite(row["loss"]) for row in log_of(config.out) if row["event"] == "train")
    Trainer(config, resume=True).fit()
    assert json.loads((Path(config.out) / "metrics.json").read_text())["skipped_samples"] == len(
        [row for row in log_of(config.out) if row["event"] == "corrupt"]
    )
    for name in ("i0", "i1", "i2", "i4"):
        damage(name)
    other = config_for("two", data=dict(root=str(root), skip_corrupt=4))
    with pytest.raises(DataError, match="expected at most data.skip_corrupt = 4"):
        Trainer(other).fit()


def test_a_signal_saves_and_stops(finished, config_for):
    config = config_for()

    def on_step(done, steps, loss):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStopped, match="stopped by SIGTERM after step 3 of 6; the state is saved"):
        Trainer(config, on_step=on_step).fit()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = Trainer(config, resume=True)
    assert resumed.step == 3
    resumed.fit()
    assert weights(config.out) == weights(finished[0].out) and log_of(config.out) == log_of(finished[0].out)


def test_profile(config_for):
    config, said = config_for(optim=dict(steps=7)), []
    Trainer(config, profile=True, say=said.append).fit()
    table = (Path(config.out) / "profile" / "table.txt").read_text()
    assert "Steps 4 to 6" in table and said[-1].startswith("profile: ")
    for stage in ("dmtl: forward", "dmtl: loss", "dmtl: backward", "dmtl: optimizer"):
        assert stage in table
    trace = gzip.decompress((Path(config.out) / "profile" / "trace.json.gz").read_bytes())
    assert json.loads(trace)["traceEvents"]


def test_epochs_and_learning_rates_of_epochs(config_for):
    """Eight images in batches of four: two steps an epoch; published: the rate falls once per epoch."""
    config = config_for(optim=dict(epochs=3, steps=999, warmup=0, schedule_every="epoch", power=0.9))
    trainer = Trainer(config)
    trainer.fit()
    rates = [row["lr"] for row in log_of(config.out) if row["event"] == "train"]
    assert trainer.steps == 6 and rates == pytest.approx(
        [1e-3 * (1 - e / 3) ** 0.9 for e in (0, 0, 1, 1, 2, 2)]
    )


@pytest.mark.parametrize("weighting", ["uncertainty", "dwa"])
def test_weightings_resume_exactly(config_for, weighting):
    options = dict(weighting=weighting, batch_size=2, steps=12, lr=1e-2)
    whole, stopped = (config_for(name, optim=options) for name in ("whole", "stopped"))
    Trainer(whole).fit()
    with pytest.raises(Stopped):
        Trainer(stopped, on_step=stop_at(11)).fit()
    Trainer(stopped, resume=True).fit()
    assert weights(stopped.out) == weights(whole.out) and log_of(stopped.out) == log_of(whole.out)


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
    metrics = Trainer(config).fit()
    model = from_pretrained(Path(config.out) / "model")
    baseline = config.model.diffusion == "none"
    assert isinstance(model, MultiTaskBaseline if baseline else DiffusionMTL)
    tasks = config.data.tasks or TASKS
    assert list(model.tasks) == tasks
    assert set(metrics) == ({*tasks} if baseline else {*tasks, *(f"initial/{t}" for t in tasks)})
    assert all(math.isfinite(row["loss"]) for row in log_of(config.out) if row["event"] == "train")


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.3)])
def test_half_precision_follows_single(finished, config_for, precision, tolerance):
    """fp16 may skip its first steps, while the scale of its gradients comes down to what it can hold."""
    config = config_for(optim=dict(precision=precision))
    trainer = Trainer(config)
    trainer.fit()
    ours, theirs = (
        [r["loss"] for r in log_of(c.out) if r["event"] == "train"] for c in (config, finished[0])
    )
    assert ours == pytest.approx(theirs, rel=tolerance) and ours != theirs
    assert trainer._step.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_follows_the_processor(config_for, monkeypatch, native):
    """bf16 without instructions for it is many times slower than fp32: "auto" avoids it, a choice warns."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native)
    losses = {}
    for precision in ("auto", "bf16", "fp32"):
        said: list[str] = []
        trainer = Trainer(config_for(optim=dict(precision=precision)), say=said.append)
        losses[precision] = trainer._step.batch_loss(next(trainer.loader.stream(0)), 0, True)[0].item()
        warned = any("no instructions for bf16" in line for line in said)
        assert warned == (precision == "bf16" and not native)
    assert losses["auto"] == losses["bf16" if native else "fp32"] != losses["fp32" if native else "bf16"]


def test_fp16_skips_a_step_that_overflows(config_for):
    trainer = Trainer(config_for(optim=dict(precision="fp16")))
    batch = next(trainer.loader.stream(0))
    weight = trainer.model.initial.embed.weight
    before = weight.detach().clone()
    for scale, skipped in ((1e30, True), (1.0, False)):
        scaler = trainer._step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer._step(batch, 0)
        assert torch.equal(weight, before) == skipped and (scaler.get_scale() < scale) == skipped
        assert trainer._step.read().skipped == []  # finding the scale is no mishap


def test_late_mtdnet(config_for):
    """Before its start MTDNet stands still and only the initial losses are logged."""
    trainer = Trainer(config_for(optim=dict(steps=4, mtdnet_start=0.5, weight_decay=0.0)))
    start = {name: p.detach().clone() for name, p in trainer.model.mtdnet.named_parameters()}
    moved = []
    trainer.on_step = lambda *_: moved.append(
        any(not torch.equal(p, start[name]) for name, p in trainer.model.mtdnet.named_parameters())
    )
    trainer.fit()
    assert moved == [False, False, True, True]
    rows = [row for row in log_of(trainer.out) if row["event"] == "train"]
    assert [any(key.startswith("loss/initial/") for key in row) for row in rows] == [False, False, True, True]


def test_tensorboard(config_for):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_for(optim=dict(steps=2), log=dict(tensorboard=True))
    Trainer(config).fit()
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    logged = [row["loss"] for row in log_of(config.out) if row["event"] == "train"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(logged)
    assert "eval/metrics/semseg/mIoU" in events.Tags()["scalars"]


def test_on_step_is_told_the_progress(config_for):
    calls = []
    Trainer(config_for(optim=dict(steps=3)), on_step=lambda *call: calls.append(call)).fit()
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)] and all(
        math.isfinite(call[2]) for call in calls
    )


@pytest.mark.parametrize("options", [{}, dict(ema=0.9), dict(precision="fp16")])
def test_a_step_waits_for_nothing(config_for, monkeypatch, options):
    """No tensor is read by the host inside a step; on a GPU each such reading would wait for the device."""
    trainer = Trainer(config_for(optim=options))
    batch = next(trainer.loader.stream(0))
    refuse_readings(monkeypatch)
    trainer._step(batch, 0)
    if trainer.ema is not None:
        trainer.ema.update(0)
    monkeypatch.undo()
    values = trainer._step.read().values
    assert math.isfinite(values["loss"]) and "loss/grad_norm" in values


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_initial_network(finished, config_for):
    """The same run to rounding, with a moving average that is not compiled, and its weights under their own
    names; a task without a label in a batch stays without a gradient."""
    config = config_for(execution=dict(compile=True), optim=dict(ema=0.9))
    trainer = Trainer(config)
    trainer.fit()
    batch = next(trainer.loader.stream(0))
    batch.present["edge"][:] = False
    batch.labelled["edge"] = 0
    trainer._step(batch, 5)
    assert {p.grad is None for p in trainer.model.initial.decoders["edge"].parameters()} == {True}
    assert {p.grad is None for p in trainer.model.initial.decoders["heat"].parameters()} == {False}
    ours, theirs = (
        [r["loss"] for r in log_of(c.out) if r["event"] == "train"] for c in (config, finished[0])
    )
    # Adam divides by the size of a gradient, so rounding grows with the steps: 1.1 % at the sixth on AVX2.
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5) and ours == pytest.approx(theirs, rel=5e-2)
    assert from_pretrained(Path(config.out) / "model").tasks.keys() == set(TASKS)
