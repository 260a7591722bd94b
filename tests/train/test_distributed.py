"""Runs of two and three processes (gloo), started by torchrun, beside one process."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from dmtl.errors import ConfigError
from dmtl.runtime import distributed as processes
from dmtl.runtime.distributed import World
from dmtl.train import distributed
from dmtl.train.config import ExecutionConfig
from dmtl.train.setup import open_data, training_loader
from dmtl.train.toml import write_config

from . import worker

ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes: int, *arguments: object, restarts: int = 0, fails: bool = False) -> str:
    """What the processes print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment
    )  # workers end by themselves
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(processes: int, job: str, out: Path, images: Path, *rest: object, **options) -> list:
    """What every process has found in this job."""
    torchrun(processes, worker.__file__, job, out, images, *rest, **options)
    return [torch.load(out / f"{job}-{processes}-{rank}.pt", weights_only=False) for rank in range(processes)]


# training


def check_steps(images: Path, out: Path, processes: int, job: str, runs: list[str]) -> None:
    alone = worker.all_steps(images, out, World(), runs)
    ranks = results(processes, job, out, images)
    for run, execution in ranks[0]:
        one = alone[run, "alone"]
        for kind in ("weights", "weighting", "objectives", "ema", "moments"):
            assert one[kind].keys() == ranks[0][run, execution][kind].keys()
            for name, value in one[kind].items():
                found = [rank[run, execution][kind][name] for rank in ranks]
                assert all(torch.equal(found[0], other) for other in found), (run, execution, name)
                if name.endswith("/step"):  # of an optimiser: a parameter without a gradient is skipped
                    assert torch.equal(found[0], value), (run, execution, name)
                else:
                    torch.testing.assert_close(
                        found[0], value, rtol=0, atol=1e-5, msg=f"{run}, {execution}, {kind}: {name}"
                    )
        counts = {float(value) for name, value in one["moments"].items() if name.endswith("/step")}
        kinds = 1 if run == "mtpsl" else 2  # that reaches all, but in steps without a pair
        assert len(counts) > kinds and max(counts) == worker.STEPS  # tasks were absent everywhere, some steps


@pytest.mark.slow
def test_twenty_steps_of_two_processes_equal_one(images, tmp_path):
    check_steps(images, tmp_path, 2, "joined", ["joined", "mtpsl"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_model_and_execution_equals_one_process(images, tmp_path, processes):
    check_steps(images, tmp_path, processes, "steps", list(worker.RUNS))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_is_started_again_and_the_run_finishes(images, tmp_path, parallel):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    whole = results(2, "train", tmp_path, images, straight, parallel, -1)
    ranks = results(2, "train", tmp_path, images, killed, parallel, 5, restarts=3)
    assert (killed / "killed").exists() and {rank["start"] for rank in whole} == {0}
    assert {rank["start"] for rank in ranks} == {4}  # the checkpoint before
    for rank in ranks:
        assert all(torch.equal(value, whole[0]["weights"][name]) for name, value in rank["weights"].items())
        assert rank["metrics"] == whole[0]["metrics"]
    assert (killed / "metrics.json").exists() and (killed / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_three(images, tmp_path):
    two = tmp_path / "two"
    printed = torchrun(2, worker.__file__, "train", tmp_path, images, two, "fsdp", 5, fails=True)
    assert "ChildFailedError" in printed
    runs = {name: shutil.copytree(two, tmp_path / name) for name in ("one", "ddp", "fsdp")}
    (tmp_path / "alone").mkdir()
    alone = worker.train(images, tmp_path / "alone", "ddp", -1)
    found = {"one": worker.train(images, runs["one"], "ddp", -1)}
    for parallel in ("ddp", "fsdp"):
        found[parallel], *others = results(3, "train", tmp_path, images, runs[parallel], parallel, -1)
        for other in others:
            assert all(torch.equal(v, found[parallel]["weights"][k]) for k, v in other["weights"].items())
    for name, run in found.items():
        assert run["start"] == 4 and alone["start"] == 0
        for key, value in alone["weights"].items():
            torch.testing.assert_close(
                run["weights"][key],
                value,
                rtol=0,
                atol=2e-4,  # of 8e-3: AdamW makes steps of gradients that are rounding errors alone
                msg=lambda text, name=name, key=key: f"{name}, {key}: {text}",
            )


def test_moments_lie_as_their_weights():
    """A checkpoint of shards is contiguous, a model on its own channels-last; a fused optimiser needs both
    alike."""
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        state["state"][0][name] = state["state"][0][name].contiguous()
    distributed.restore_optimizer(optimizer, state)
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[weight][name]
        assert moment.stride() == weight.stride() and torch.equal(moment, state["state"][0][name])


# evaluation


def test_two_processes_evaluate_to_the_bit(images, tmp_path):
    alone = worker.all_evaluations(images, tmp_path, World())
    for found in results(2, "evaluate", tmp_path, images):
        assert repr(found) == repr(alone)  # repr: all digits, and a figure of no pixel equals itself


@pytest.mark.slow
def test_three_processes_evaluate_to_the_bit(images, tmp_path):
    alone = worker.all_evaluations(images, tmp_path, World())
    for found in results(3, "evaluate", tmp_path, images):
        assert repr(found) == repr(alone)


# one process, and what cannot work


def test_one_process_needs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = processes.connect("cpu")
    assert world == World(0, 1) and world.main
    module = nn.Linear(2, 2)
    assert distributed.wrap(module, ExecutionConfig(parallel="fsdp", sync_bn=True), world) is module
    distributed.expect(module, "key")
    with distributed.last_micro_batch(module, False):
        module(torch.ones(1, 2)).sum().backward()
    distributed.drop_absent(module)
    assert module.weight.grad is not None
    value = torch.ones(2)
    assert processes.total(value) is value and value.tolist() == [1, 1]
    assert processes.any_rank(True) and not processes.any_rank(False)
    assert processes.gather("here") == ["here"]
    state = {"a": [torch.ones(1), (2, None)], "b": {"c": 1.5}}
    assert repr(distributed.full_tensors(state)) == repr(state)
    assert distributed.full_tensors(state, keep=False) is None


@pytest.fixture
def two_processes(monkeypatch):
    """The environment of the second of two, which are not there."""
    values = dict(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "TIMEOUT", timedelta(seconds=1))
    return monkeypatch


def test_an_incomplete_environment(two_processes):
    two_processes.setenv("LOCAL_RANK", "first")
    with pytest.raises(ConfigError, match="LOCAL_RANK must be a number, as torchrun sets it, got 'first'"):
        processes.connect("cpu")
    two_processes.delenv("RANK")
    with pytest.raises(ConfigError, match="RANK must be a number, as torchrun sets it, got None"):
        processes.connect("cpu")


def test_processes_that_cannot_be_reached(two_processes):
    with pytest.raises(ConfigError, match="process 1 of 2 cannot join the others at 127.0.0.1:1"):
        processes.connect("cpu")


def test_gpus_that_are_not_there(two_processes):
    two_processes.setattr(processes, "pick_device", lambda name: torch.device("cuda"))
    two_processes.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match='device must be "auto", "cpu" or "cuda" for 2 processes, got'):
        processes.connect("cuda:1")
    with pytest.raises(ConfigError, match="--nproc-per-node must be at most 1, the number of GPUs"):
        processes.connect("cuda")


def test_batch_norms_are_synchronised_on_gpus_only():
    with pytest.raises(ConfigError, match="execution.sync_bn must be false on a cpu"):
        distributed.wrap(nn.Linear(2, 2), ExecutionConfig(sync_bn=True), World(0, 2))


def test_every_process_needs_an_image(images, tmp_path):
    config = worker.config_for(images, tmp_path, optim=dict(batch_size=2))
    with pytest.raises(
        ConfigError, match="optim.batch_size must be at least the number of processes, 3, got 2"
    ):
        training_loader(config, open_data(config.data), world=World(0, 3))


def test_synchronised_batch_norms_meet_in_every_micro_batch(images, tmp_path):
    execution = dict(sync_bn=True, micro_batch=1)
    config = worker.config_for(images, tmp_path, execution=execution)
    training_loader(config, open_data(config.data), world=World(0, 2))
    with pytest.raises(ConfigError, match="optim.batch_size to a multiple of 3 and .* got 4 and 0"):
        training_loader(config, open_data(config.data), world=World(0, 3))


@pytest.mark.slow
def test_the_command_line_under_torchrun(images, tmp_path):
    """One process talks; a mistake is told without a traceback of ours."""
    config = worker.config_for(images, tmp_path / "run", optim=dict(steps=2))
    write_config(config, tmp_path / "run.toml")
    printed = torchrun(2, "-m", "dmtl", "train", tmp_path / "run.toml")
    assert printed.count("model:") == 1 and (tmp_path / "run" / "metrics.json").exists()
    again = torchrun(2, "-m", "dmtl", "train", tmp_path / "run.toml", fails=True)
    assert "already holds a run; choose another out, or resume it" in again and "[rank1]" not in again
