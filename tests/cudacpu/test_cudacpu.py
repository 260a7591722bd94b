"""The CUDA kernels on a CPU, under sanitizers: operators, whole model, and faults that must be found."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .build import MEMORY, MODULE, RACES, ROOT, Sanitizer, build, build_mutant, environment
from .mutants import MUTANTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None or not MEMORY.libraries() or not RACES.libraries(),
        reason="needs g++ and its sanitizers",
    ),
]
IN_ORDER, REVERSED, SHUFFLED = 0, 1, 7
GENERIC = "tests/ops/test_generic.py"


@pytest.fixture(scope="session")
def module(tmp_path_factory) -> Path:
    """The emulated module, built once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cudacpu"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / MODULE if (folder / MODULE).is_file() else build(folder)


def start(module: Path, order: int, sanitizer: Sanitizer, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env=environment(module, order, sanitizer), capture_output=True, text=True,
    )  # fmt: skip


def run(module: Path, order: int, *command: str, sanitizer: Sanitizer = MEMORY) -> str:
    done = start(module, order, sanitizer, *command)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def pytest_of(tests: str, selected: str) -> list[str]:
    plugins = ("-p", "tests.cudacpu.plugin", "-p", "no:xdist")
    return ["pytest", "-q", *plugins, "-m", "slow or not slow", tests, "-k", selected]


@pytest.mark.parametrize(
    ("order", "tests", "selected"),
    [
        pytest.param(IN_ORDER, GENERIC, "cuda and not explicit", id="generic, in order"),
        pytest.param(REVERSED, GENERIC, "cuda and agrees", id="generic, reversed"),
        pytest.param(SHUFFLED, "tests/ops", "cuda and not opcheck and not explicit", id="all, shuffled"),
        pytest.param(SHUFFLED, "tests/models/test_forward.py", "cuda", id="whole model, shuffled"),
    ],
)
def test_passes(module, order, tests, selected):
    """Whatever the order of threads and blocks; torch's buffers are exact ones of the sanitizer."""
    report = run(module, order, *pytest_of(tests, selected))
    assert int(re.search(r"(\d+) passed", report)[1]) >= 2, report[-2000:]


def test_faults_are_found(module, tmp_path):
    def make(number: int) -> str:
        mutant, folder = MUTANTS[number], tmp_path / MUTANTS[number].fault.replace(" ", "-")
        path = build_mutant(module.parent, folder, ROOT / mutant.file, mutant.text(), mutant.op)
        return f"{mutant.op}={path}"

    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(make, range(len(MUTANTS))))
    assert f"{len(MUTANTS)} mutants, survivors: []" in run(module, SHUFFLED, "tests.cudacpu.mutants", *built)


def test_no_races(tmp_path):
    """No two threads of a block touch an element without a barrier between them, or the thread sanitizer says
    so; it finds every barrier that is left out, in order, where most of them change no result."""
    module = build(tmp_path / "races", RACES)
    report = run(module, IN_ORDER, *pytest_of(GENERIC, "cuda and agrees"), sanitizer=RACES)
    assert int(re.search(r"(\d+) passed", report)[1]) >= 2, report[-2000:]
    without_barrier = [mutant for mutant in MUTANTS if "__syncthreads" in mutant.old]
    assert len(without_barrier) >= 5
    for mutant in without_barrier:
        folder = tmp_path / mutant.fault.replace(" ", "-")
        path = build_mutant(module.parent, folder, ROOT / mutant.file, mutant.text(), mutant.op, RACES)
        done = start(path, IN_ORDER, RACES, *pytest_of(GENERIC, f"cuda and agrees and {mutant.op}"), "-s")
        assert "ThreadSanitizer: data race" in done.stderr, mutant.fault
