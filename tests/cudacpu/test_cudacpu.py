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

from .build import MODULE, ROOT, build, build_mutant, environment, runtimes
from .mutants import MUTANTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None or not runtimes(), reason="needs g++ and its sanitizers"),
]
IN_ORDER, REVERSED, SHUFFLED = 0, 1, 7


@pytest.fixture(scope="session")
def module(tmp_path_factory) -> Path:
    """The emulated module, built once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cudacpu"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / MODULE if (folder / MODULE).is_file() else build(folder)


def run(module: Path, order: int, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env=environment(module, order), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.parametrize(
    ("order", "tests", "selected"),
    [
        pytest.param(IN_ORDER, "tests/ops/test_generic.py", "cuda and not explicit", id="generic, in order"),
        pytest.param(REVERSED, "tests/ops/test_generic.py", "cuda and agrees", id="generic, reversed"),
        pytest.param(SHUFFLED, "tests/ops", "cuda and not opcheck and not explicit", id="all, shuffled"),
        pytest.param(SHUFFLED, "tests/models/test_forward.py", "cuda", id="whole model, shuffled"),
    ],
)
def test_passes(module, order, tests, selected):
    """Whatever the order of threads and blocks; torch's buffers are exact ones of the sanitizer."""
    plugins = ("-p", "tests.cudacpu.plugin", "-p", "no:xdist")
    report = run(module, order, "pytest", "-q", *plugins, "-m", "slow or not slow", tests, "-k", selected)
    assert int(re.search(r"(\d+) passed", report)[1]) >= 2, report[-2000:]


def test_faults_are_found(module, tmp_path):
    def make(number: int) -> str:
        mutant, folder = MUTANTS[number], tmp_path / MUTANTS[number].fault.replace(" ", "-")
        path = build_mutant(module.parent, folder, ROOT / mutant.file, mutant.text(), mutant.op)
        return f"{mutant.op}={path}"

    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(make, range(len(MUTANTS))))
    assert f"{len(MUTANTS)} mutants, survivors: []" in run(module, SHUFFLED, "tests.cudacpu.mutants", *built)
