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
PATIENCE = 600  # seconds for what takes ten at most on a quiet machine
# `dmtl` that waits for a signal at one place: before the row of a step, at a write of a step's checkpoint, or
# where a file of the final model is synced. A signal meets it there or earlier, however slow the machine is.
HELD = """
import itertools, os, sys, time
from dmtl.cli import main
from dmtl.train import checkpoint
from dmtl.train.log import RunLog
from dmtl.train.signals import StopRequest

kind, step, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
count, signals, saving = itertools.count(1), [], [None]

def patch(owner, name, before):
    real = getattr(owner, name)
    def patched(*arguments, **options):
        before(*arguments)
        return real(*arguments, **options)
    setattr(owner, name, patched)

def hold():
    print("waiting for a signal", flush=True)
    while not signals:
        time.sleep(0.01)

def held(here):
    if here and next(count) == number:
        hold()

patch(StopRequest, "_note", lambda self, number, frame: signals.append(number))
patch(checkpoint, "_write_file", lambda path, state: saving.append(state["step"]))
patch(RunLog, "write", lambda self, event, at: held((kind, event, at) == ("row", "train", step)))
patch(checkpoint._Digesting, "write", lambda self, data: held(kind == "save" and saving[-1] == step))
patch(os, "fsync", lambda file: held(kind == "model" and "/model/" in os.readlink(f"/proc/self/fd/{file}")))
sys.exit(main(sys.argv[4:]))
"""
WRITES = 4000  # of a checkpoint's file, at least


@dataclass
class Hold:
    """Where a process waits: a kind, a step, and which time it comes by there."""

    kind: str
    step: int = 0
    number: int = 1


class Run:
    """A run's folder, and the processes that work on it one after the other."""

    def __init__(self, config: Path, out: Path):
        self.config, self.out = config, out
        self.folder, self.printed = out / "checkpoints", out.parent / f"{out.name}.txt"

    def start(self, *options: str, hold: Hold | None = None) -> subprocess.Popen:
        program = ["-m", "dmtl"]
        if hold is not None:
            program = [str(self.config.with_name("held.py")), hold.kind, str(hold.step), str(hold.number)]
        command = [sys.executable, *program, "train", str(self.config), "--out", str(self.out), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.printed, "w") as printed:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed)

    def finish(self, *options: str) -> str:
        """Runs to the end; returns what was printed."""
        status = self.start(*options).wait(PATIENCE)
        assert status == 0, self.printed.read_text()
        return self.printed.read_text()

    def signalled(self, number: int, hold: Hold, moment: Callable[[], bool], delay=0.0, options=()) -> int:
        """Starts it and sends a signal `delay` seconds after `moment`; returns the exit status."""
        process = self.start(*options, hold=hold)
        try:
            deadline = time.monotonic() + PATIENCE
            while not moment():
                assert process.poll() is None and time.monotonic() < deadline, self.printed.read_text()
                time.sleep(0.01)
            time.sleep(delay)
            process.send_signal(number)
            return process.wait(PATIENCE)
        finally:
            process.kill()

    def has_row(self, event: str, step: int) -> bool:
        return any(
            row["event"] == event and row["step"] == step for row in RunLog.read(self.out / "log.jsonl")
        )

    def held(self) -> bool:
        """Whether it waits for its signal."""
        return "waiting for a signal" in self.printed.read_text()

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
    (folder / "held.py").write_text(HELD)
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
    """One kill: `delay` seconds after the row of step `after`; without one, where the process waits."""

    hold: Hold
    after: int = 0
    delay: float = 0.0
    options: tuple[str, ...] = ()


def within_steps(step: int, delay: float = 0.0) -> Case:
    return Case(Hold("row", min(step + 8, STEPS - 1)), step, delay)


def cases() -> list[Case]:
    """Eight kills at any moment of a step, eight inside the write of a checkpoint, four after the last step:
    two of them inside the last checkpoint, two when nothing is missing but the model."""
    rng, found = random.Random(11), []
    for number in range(20):
        kind = ("step", "save", "step", "save", "end")[number % 5]
        if kind == "step":
            case = within_steps(rng.randrange(1, STEPS - 8), rng.uniform(0, 0.05))
        elif kind == "save":
            case = Case(Hold("save", rng.randrange(EVERY, STEPS, EVERY), rng.randrange(1, WRITES)))
        elif number % 2:
            case = Case(Hold("model", STEPS, 1 + number // 10))
        else:
            case = Case(Hold("save", STEPS, rng.randrange(1, WRITES)))
        case.options = ("--data.workers", "1") if number % 10 == 0 else ()
        found.append(case)
    return found


def killed(run: Run, case: Case, options=()) -> bool:
    """Kills the run; returns whether a write of a checkpoint was torn by it."""
    moment = (lambda: run.has_row("train", case.after)) if case.after else run.held
    status = run.signalled(signal.SIGKILL, case.hold, moment, case.delay, (*case.options, *options))
    assert status == -signal.SIGKILL, run.printed.read_text()
    return any(run.folder.glob(".step-*"))


def test_twenty_kills(new_run, expected):
    def result(number: int, case: Case) -> dict:
        run = new_run(f"killed-{number}")
        torn = killed(run, case)
        assert torn or case.hold.kind != "save"
        again = case.hold.step + EVERY + 1  # a step that the killed process cannot have done
        if number % 4 == 3 and again < STEPS - 1:
            killed(run, within_steps(again), ("--resume",))
        run.finish("--resume", *case.options)
        assert not any(run.folder.glob(".*")), "torn files stay"
        assert len(list(run.folder.iterdir())) == 2
        return run.result()

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(result, range(20), cases()))
    for case, found in zip(cases(), results, strict=True):
        assert found == expected, case


@pytest.mark.parametrize("hold", [Hold("row", 20), Hold("save", 9, WRITES // 2)], ids=["steps", "save"])
def test_sigterm(new_run, expected, hold):
    """Between steps, and while a checkpoint is being written."""
    run = new_run(f"terminated-{hold.kind}")
    status = run.signalled(signal.SIGTERM, hold, lambda: run.has_row("train", 10))
    assert status == 143
    step = read_checkpoint(run.checkpoints()[0])["step"]
    assert 10 <= step < STEPS
    said = run.printed.read_text()
    assert f"stopped by SIGTERM after step {step} of {STEPS}; the state is saved, resume continues" in said
    assert "Traceback" not in said
    assert f"resumed at step {step}" in run.finish("--resume")
    assert run.result() == expected


def test_torn_newest(new_run, expected):
    run = new_run("torn")
    assert run.signalled(signal.SIGTERM, Hold("row", 20), lambda: run.has_row("train", 13)) == 143
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
    assert run.signalled(signal.SIGTERM, Hold("row", 20), lambda: run.has_row("train", 7)) == 143
    rows = RunLog.read(run.out / "log.jsonl")
    for path in run.folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert run.start("--resume").wait(PATIENCE) == 2
    said = run.printed.read_text()
    assert "no intact checkpoint to resume from" in said and "Traceback" not in said
    assert all(f"{path}: damaged (" in said for path in run.folder.iterdir())
    assert RunLog.read(run.out / "log.jsonl") == rows
