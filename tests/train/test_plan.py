"""The plan of a run: what is counted against the run's own objects, what is forecast against a real run."""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from dmtl.errors import ConfigError
from dmtl.models import ModelConfig
from dmtl.models.work import count
from dmtl.train import plan as planning
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.checkpoint import read_checkpoint, state_bytes
from dmtl.train.config import DataConfig, LogConfig, OptimConfig, RunConfig
from dmtl.train.log import RunLog
from dmtl.train.plan import forecast, measure, plan
from dmtl.train.setup import model_for, open_data, training_loader
from dmtl.train.toml import read_config, write_config
from dmtl.train.trainer import Trainer
from dmtl.train.weighting import make_weighting
from tests.cli.conftest import environment

ROOT = Path(__file__).resolve().parents[2]


def run_config(out="unused", data={}, model={}, optim={}, log={}, **options) -> RunConfig:
    """Ten rendered images of 32x32, a network of a few thousand parameters, six steps."""
    small = dict(width=16, heads=2, backbone_width=4, blocks=1, decoder_blocks=1)
    return RunConfig(
        out=str(out),
        device="cpu",
        data=DataConfig(**(dict(size=(32, 32), train_count=10, val_count=3, labels="random-labels") | data)),
        model=ModelConfig(**(small | model)),
        optim=OptimConfig(**(dict(steps=6, batch_size=4, warmup=2) | optim)),
        log=LogConfig(**(dict(every=1, eval_every=3, checkpoint_every=2) | log)),
        **options,
    )


def test_data_and_steps():
    config = run_config(optim={"epochs": 3})
    facts, data = plan(config), open_data(config.data)
    assert (facts["data"]["train"], facts["data"]["labelled"], facts["data"]["val"]) == (10, 10, 3)
    assert facts["data"]["labels"] == data.labels.statistics()
    steps = facts["steps"]
    assert (steps["total"], steps["per_epoch"], steps["epochs"], steps["images"]) == (6, 2, 3.0, 4)
    seen = [batch.present for batch in training_loader(config, data)]
    pairs = np.array([[int(mask.sum()) for mask in present.values()] for present in seen])
    assert list(steps["pairs"].values()) == pairs.mean(0).tolist()
    assert list(steps["pairs"]) == list(seen[0]) and steps["most_pairs"] == pairs.sum(1).max()
    assert facts["evaluations"] == 2  # after steps 3 and 6
    assert plan(run_config(optim={"steps": 7}))["evaluations"] == 3


def test_images_without_labels_are_not_counted(tmp_path):
    data = open_data(run_config().data)
    bare = dataclasses.replace(data.labels, matrix=data.labels.matrix & (np.arange(10) < 6)[:, None])
    bare.write_csv(tmp_path / "labels.csv")
    facts = plan(run_config(data={"labels": str(tmp_path / "labels.csv")}))
    assert (facts["data"]["train"], facts["data"]["labelled"], facts["steps"]["per_epoch"]) == (10, 6, 1)
    assert facts["data"]["labels"]["labels_per_image"]["0"] == 4


@pytest.mark.parametrize("diffusion", ["feature", "none"])
def test_parameters(diffusion):
    config = run_config(
        model={"diffusion": diffusion}, optim={"freeze": ["initial.backbone", "initial.heads"]}
    )
    parts = plan(config)["parameters"]
    model = model_for(config, open_data(config.data).tasks)
    assert sum(part["trained"] + part["frozen"] for part in parts.values()) == sum(
        p.numel() for p in model.parameters()
    )
    assert parts["encoder"] == {
        "trained": 0,
        "frozen": sum(p.numel() for p in model.initial.backbone.parameters()),
    }
    heads = sum(p.numel() for p in model.initial.heads.parameters())
    assert parts["initial decoders"]["frozen"] == heads and parts["initial decoders"]["trained"] > heads
    assert ("cross blocks" in parts) == (diffusion != "none")


def test_operations_of_the_baseline_are_torchs():
    """The forward pass of the loss as torch's counter sees it."""
    config = run_config(model={"diffusion": "none"}, data={"labels": "full"})
    data = open_data(config.data)
    model = model_for(config, data.tasks)
    batch = next(iter(training_loader(config, data)))
    batch_loss = BatchLoss(model, make_weighting(config.optim, model.tasks), config.optim)
    with FlopCounterMode(display=False) as forward:
        batch_loss(batch, 0, False)
    assert plan(config)["flops"] == {"initial": forward.get_total_flops(), "condition": 0, "chain": 0}


def test_operations_follow_the_labelled_pairs():
    config = run_config()
    facts, specs = plan(config), [task.spec() for task in open_data(config.data).tasks.values()]
    model = dataclasses.replace(config.model, tasks=specs)

    def work(stage, **options):
        parts = count(model, (32, 32), published=True, **options)
        return sum(part.flops for part in parts if part.stage == stage)

    chain = sum(n * work("chain", tasks=[task]) for task, n in facts["steps"]["pairs"].items())
    flops = facts["flops"]
    assert (flops["initial"], flops["condition"]) == (4 * work("initial"), 4 * work("condition"))
    assert flops["chain"] == pytest.approx(chain)


@pytest.mark.parametrize(("weighting", "ema"), [("fixed", 0.0), ("uncertainty", 0.9)])
def test_files(tmp_path, weighting, ema):
    """The bytes of the tensors that a real run stores, but for the state of the random generator."""
    config = run_config(tmp_path / "run", optim={"weighting": weighting, "ema": ema, "steps": 2})
    files = plan(config)["files"]
    Trainer(config).fit()
    [file] = (tmp_path / "run" / "checkpoints").glob("step-*.pt")
    state = read_checkpoint(file)
    state.pop("rng")
    assert abs(files["checkpoint"] - state_bytes(state)) < 200
    model = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    assert files["model"] < model < files["model"] + 40_000
    assert (files["kept"], files["disk"]) == (2, 3 * files["checkpoint"] + 2 * files["model"])


def test_forecast():
    """Reading counts in the first epoch, in all without a cache, and behind computation with workers."""
    facts = plan(run_config(optim={"steps": 10}))  # two steps an epoch
    measured = dict(
        step_s=[9.0, 0.5, 0.1], read_s=0.2, again_s=0.05, evaluation_s=2.0, peak_bytes=1000, cores=2
    )
    measured |= dict(device_bytes=0, held_bytes=30, train_bytes=10.0, val_bytes=20.0, cache_limit=50)

    def told(log={}, **data):
        return forecast(facts, run_config(data=data, optim={"steps": 10}, log=log), measured)

    cached = told()
    assert (cached["compute_s"], cached["load_first_s"], cached["load_s"]) == (0.5, 0.8, 0.2)
    assert cached["step_s"] == pytest.approx((2 * 1.3 + 8 * 0.7) / 10)
    assert cached["evaluation_s"] == facts["evaluations"] * 3 * 2.0
    assert cached["hours"] == pytest.approx((10 * cached["step_s"] + cached["evaluation_s"]) / 3600)
    assert cached["cache_bytes"] == 50 + 50  # both splits are larger than the limit
    assert cached["memory_bytes"] == 1000 + 100 - 30 + facts["files"]["checkpoint"]
    assert told(log={"checkpoint_every": 10})["memory_bytes"] == 1000 + 100 - 30
    assert told(cache=False)["step_s"] == pytest.approx(1.3)
    assert told(cache=False, cache_dir="x")["step_s"] == cached["step_s"]
    warmed = told(workers=2)
    assert (warmed["start_s"], warmed["step_s"]) == (10 * 0.2 / 2, 0.5)
    assert warmed["hours"] == pytest.approx((1.0 + 10 * 0.5 + warmed["evaluation_s"]) / 3600)
    assert told(cache=False, workers=1)["step_s"] == pytest.approx(0.8)
    assert told(cache=False, workers=9)["step_s"] == pytest.approx(0.5)


def test_measured_steps_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = run_config("run", data={"cache_dir": "kept"}, optim={"precision": "bf16"})
    found = measure(config, threads=1)
    assert planning.LEAST_STEPS <= len(found["step_s"]) <= planning.MOST_STEPS and min(found["step_s"]) > 0
    assert found["peak_bytes"] > 50 << 20 and found["device"] == "cpu" and found["device_bytes"] == 0
    sample = 32 * 32 * 3  # the image; labels beside it
    assert sample < found["train_bytes"] < 12 * sample and found["val_bytes"] > found["train_bytes"]
    assert found["held_bytes"] <= 10 * found["train_bytes"] + 3 * found["val_bytes"] + 1
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_the_measured_steps_is_told():
    config = run_config(optim={"backbone_weights": "gone.pth"})
    with pytest.raises(ConfigError, match="gone.pth"):
        measure(config, threads=1)


# With the processor's time in place of the clock's: other work on the machine is no part of the forecast.
OWN_TIME = """
import dataclasses, json, sys, time
time.perf_counter = time.process_time
import torch
torch.set_num_threads(1)
from dmtl.runtime.memory import peak_rss_bytes
from dmtl.train.plan import measured
from dmtl.train.toml import read_config
from dmtl.train.trainer import Trainer

config = read_config(sys.argv[1])
"""
MEASURE = OWN_TIME + "print(json.dumps(measured(dataclasses.asdict(config))))"
RUN = OWN_TIME + "Trainer(config).fit()\nprint(peak_rss_bytes())"


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["one-label", "random-labels"])
def test_memory_and_time_of_a_real_run(tmp_path, labels):
    """Within 20 % of what a short run of the scenes configuration takes; every image is read once in it. Its
    time is compared with what was forecast before and after, as machines have moods; the medians of up to
    eight runs may settle it."""
    told, taken = [], []
    for attempt in range(8):
        forecasts, steps, memory_told, memory_taken = forecast_and_run(tmp_path / str(attempt), labels)
        assert memory_told == pytest.approx(memory_taken, rel=0.2)
        told, taken = told + forecasts, taken + steps
        if statistics.mean(forecasts) == pytest.approx(statistics.median(steps), rel=0.2):
            return
        if statistics.median(told) == pytest.approx(statistics.median(taken), rel=0.2):
            return
    raise AssertionError(f"seconds per step, forecast {told}, taken {taken}")


def forecast_and_run(folder: Path, labels: str) -> tuple[list[float], list[float], int, int]:
    """Seconds per step, forecast twice and of every step; bytes of memory told and taken."""
    config = read_config(ROOT / "configs" / "scenes-one-label.toml")
    config = dataclasses.replace(
        config,
        out=str(folder / "run"),
        data=dataclasses.replace(config.data, labels=labels, train_count=120, val_count=16),
        optim=dataclasses.replace(config.optim, steps=15),
        log=dataclasses.replace(config.log, every=1),
    )
    folder.mkdir()
    write_config(config, folder / "config.toml")

    def printed(program: str) -> object:
        command = [sys.executable, "-c", program, str(folder / "config.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        return json.loads(done.stdout.splitlines()[-1])

    facts = plan(config)
    before = forecast(facts, config, printed(MEASURE))
    taken_bytes = printed(RUN)
    after = forecast(facts, config, printed(MEASURE))
    rows = [row for row in RunLog.read(folder / "run" / "log.jsonl") if row["event"] == "train"]
    steps = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(rows)]
    json.dumps([facts, before])
    return [before["step_s"], after["step_s"]], steps, before["memory_bytes"], taken_bytes
