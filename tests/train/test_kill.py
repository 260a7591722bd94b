"""Runs that are killed anywhere and resumed end in the same bits as one that was not."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmtl.train.checkpoint import read_checkpoint
from dmtl.train.log import RunLog
from dmtl.train.toml import write_config
from tests.train.conftest import small_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 24, 3  # of the run, and from checkpoint to checkpoint
# `dmtl` with a slow disk: a checkpoint takes some tenths of a second, the final model one second.
SLOW = """
import itertools, os, sys, time
from dmtl.cli import main
from dmtl.train import checkpoint

write, sync, count = checkpoint._Digesting.write, os.fsync, itertools.count()

def slow_write(self, data):
    if next(count) % 256 == 0:
        time.sleep(0.02)
    return write(self, data)

def slow_sync(handle):
    time.sleep(0.5 if "/model/" in os.readlink(f"/proc/self/fd/{handle}") else 0.05)
    sync(handle)

checkpoint._Digesting.write, os.fsync = slow_write, slow_sync
sys.exit(main())
"""


class Run:
    """A run's folder, and the processes that work on it one after the other."""

    def __init__(self, config: Path, out: Path):
        self.config, self.out = config, out
        self.folder, self.printed = out / "checkpoints", out.parent / f"{out.name}.txt"

    def start(self, *options: str, slow: bool = False) -> subprocess.Popen:
        program = [str(self.config.with_name("slow.py"))] if slow else ["-m", "dmtl"]
        command = [sys.executable, *program, "train", str(self.config), "--out", str(self.out), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.printed, "w") as printed:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed)

    def finish(self, *options: str) -> str:
        """Runs to the end; returns what was printed."""
        status = self.start(*options).wait(120)
        assert status == 0, self.printed.read_text()
        return self.printed.read_text()

    def signalled(self, number: int, moment: Callable[[], bool], delay=0.0, options=(), slow=False) -> int:
        """Starts it and sends a signal `delay` seconds after `moment`; returns the exit status."""
        process = self.start(*options, slow=slow)
        try:
            deadline = time.monotonic() + 120
            while not moment():
                assert process.poll() is None and time.monotonic() < deadline, self.printed.read_text()
                time.sleep(0.01)
            time.sleep(delay)
            process.send_signal(number)
            return process.wait(30)
        finally:
            process.kill()

    def has_row(self, event: str, step: int) -> bool:
        return any(
            row["event"] == event and row["step"] == step for row in RunLog.read(self.out / "log.jsonl")
        )

    def writes(self, step: int) -> bool:
        """Whether the checkpoint of this step is being written, or its torn file has been left behind."""
        return any(self.folder.glob(f".step-{step:08d}.pt.*"))

    def checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def result(self) -> dict:
        """What must not depend on how often the run was killed."""
        rows = [
            {key: value for key, value in row.items() if key not in ("seconds", "waited")}
            for row in RunLog.read(self.out / "log.jsonl")
        ]
        summary = json.loads((self.out / "metrics.json").read_text()) | {"seconds": None}
        return {
            "model": hashlib.sha256((self.out / "model" / "model.safetensors").read_bytes()).hexdigest(),
            "best": hashlib.sha256((self.out / "best" / "model.safetensors").read_bytes()).hexdigest(),
            "rows": [json.dumps(row, sort_keys=True) for row in rows],
            "summary": json.dumps(summary, sort_keys=True),
        }


@pytest.fixture(scope="module")
def new_run(images, tmp_path_factory):
    """new_run("name") -> a Run in a folder of its own, all of the same configuration."""
    folder = tmp_path_factory.mktemp("kill")
    config = small_run(
        images,
        folder / "unused",
        optim=dict(steps=STEPS, deterministic=True, ema=0.9),
        log=dict(every=1, eval_every=8, checkpoint_every=EVERY, keep=2),
    )
    write_config(config, folder / "config.toml")
    (folder / "slow.py").write_text(SLOW)
    return lambda name: Run(folder / "config.toml", folder / name)


@pytest.fixture(scope="module")
def expected(new_run):
    """The result of the run that nobody stopped."""
    run = new_run("uninterrupted")
    run.finish()
    result = run.result()
    assert sum('"train"' in row for row in result["rows"]) == STEPS
    return result


@dataclass
class Case:
    """One kill: what is waited for, and the seconds from there."""

    kind: str
    step: int
    delay: float
    options: tuple[str, ...] = ()


def cases() -> list[Case]:
    """Eight kills at any moment of a step, eight inside the write of a checkpoint, four after the last step:
    two of them about the last checkpoint, two when nothing is missing but the model."""
    rng, found = random.Random(11), []
    for number in range(20):
        kind = ("step", "save", "step", "save", "end")[number % 5]
        if kind == "step":
            case = Case(kind, rng.randrange(1, STEPS - 8), rng.uniform(0, 0.05))
        elif kind == "save":
            case = Case(kind, rng.randrange(EVERY, STEPS + 1, EVERY), rng.uniform(0, 0.25))
        else:
            case = Case(("evaluated", "saved")[number % 2], STEPS, rng.uniform(0, 0.3))
        case.options = ("--data.workers", "1") if number % 10 == 0 else ()
        found.append(case)
    return found


def killed(run: Run, case: Case, options=()) -> bool:
    """Kills the run; returns whether a write of a checkpoint was torn by it."""
    moment = {
        "step": lambda: run.has_row("train", case.step),
        "save": lambda: run.writes(case.step),
        "evaluated": lambda: run.has_row("eval", STEPS),
        "saved": lambda: any(run.folder.glob(f"step-{STEPS:08d}.pt")),
    }[case.kind]
    slow = case.kind != "step"
    status = run.signalled(signal.SIGKILL, moment, case.delay, (*case.options, *options), slow)
    assert status == -signal.SIGKILL, run.printed.read_text()
    return any(run.folder.glob(".step-*"))


def test_twenty_kills(new_run, expected):
    def result(number: int, case: Case) -> tuple[bool, dict]:
        run = new_run(f"killed-{number}")
        torn = killed(run, case)
        if number % 4 == 3:  # once more, while it goes on
            again = Case("step", min(case.step + 4, STEPS - 2), 0.0)
            torn |= killed(run, again, ("--resume",)) if case.step < STEPS - EVERY else False
        run.finish("--resume", *case.options)
        assert not any(run.folder.glob(".*")), "torn files stay"
        assert len(list(run.folder.iterdir())) == 2
        return torn, run.result()

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(result, range(20), cases()))
    for case, (_, found) in zip(cases(), results, strict=True):
        assert found == expected, case
    assert sum(torn for torn, _ in results) >= 5


@pytest.mark.parametrize("slow", [False, True])
def test_sigterm(new_run, expected, slow):
    run = new_run(f"terminated-{slow}")
    started = time.monotonic()
    status = run.signalled(signal.SIGTERM, lambda: run.has_row("train", 10), slow=slow)
    assert status == 143
    step = read_checkpoint(run.checkpoints()[0])["step"]
    assert 10 <= step < STEPS
    said = run.printed.read_text()
    assert f"stopped by SIGTERM after step {step} of {STEPS}; the state is saved, --resume goes on" in said
    assert "Traceback" not in said and time.monotonic() - started < 60
    assert f"resumed at step {step}" in run.finish("--resume")
    assert run.result() == expected


def test_torn_newest(new_run, expected):
    run = new_run("torn")
    assert run.signalled(signal.SIGTERM, lambda: run.has_row("train", 13)) == 143
    newest, before = run.checkpoints()
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    step = read_checkpoint(before)["step"]
    said = run.finish("--resume")
    assert f"{newest}: damaged (" in said
    assert f"kept as {newest.name}.damaged; using step {step}" in said
    assert f"resumed at step {step}" in said
    assert run.result() == expected


def test_all_torn(new_run):
    run = new_run("all-torn")
    assert run.signalled(signal.SIGTERM, lambda: run.has_row("train", 7)) == 143
    rows = RunLog.read(run.out / "log.jsonl")
    for path in run.folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert run.start("--resume").wait(60) == 2
    said = run.printed.read_text()
    assert "no whole checkpoint to go on from" in said and "Traceback" not in said
    assert all(f"{path}: damaged (" in said for path in run.folder.iterdir())
    assert RunLog.read(run.out / "log.jsonl") == rows
