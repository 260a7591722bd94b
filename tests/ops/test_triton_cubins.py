"""Every Triton kernel, in every form in which it may be launched,
compiles for sm_80 and sm_90 and uses what it may."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmtl.ops.registry import REGISTRY

from .cubins import MODULES, ROOT, markdown

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not sys.platform.startswith("linux"),
    reason="Triton compiles on Linux",
)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may ask for


def compiled(folder, *options: str, program: str = "cubins") -> list[dict]:
    """The JSON objects that a program of tests/ops prints in a process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.ops.{program}", *options],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=3 * 3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows: list[dict]) -> None:
    """No spills, shared memory that the device has, tensor cores of the
    generation for half-precision products, and copies by TMA."""
    for row in rows:
        assert row["stack"] == 0, row
        assert row["shared"] <= SHARED_LIMIT[row["arch"]], row
        assert row["wgmma"] or row["arch"] < 90 or not row["half_dots"], row
        assert row["tma"] or not row["descriptors"], row


def test_one_form_of_each_kernel(tmp_path):
    rows = compiled(tmp_path, "--quick", "--archs", "90")
    assert {row["kernel"] for row in rows} == kernels()
    check(rows)


@pytest.mark.slow
def test_integers_may_be_one(tmp_path):
    assert {row["kernel"] for row in compiled(tmp_path, "--quick", "--ones", "--archs", "90")} == kernels()


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_form(tmp_path, module):
    rows = compiled(tmp_path, "--modules", module)
    check(rows)
    assert not rows or markdown(rows).count("\n") > 2


@pytest.mark.slow
def test_dry_launches(tmp_path):
    """What real calls ask for, forward and backward, not the forms that a list names: every kernel is
    specialised and compiled as on a GPU, with a grid and shared memory that there are."""
    ops = [op for op in REGISTRY if op in MODULES]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda op: compiled(tmp_path, op, program="dry_launch"), ops))
    assert {name for [launches] in found for name in launches} == kernels()


def test_table_names_every_kernel():
    table = (ROOT / "kernels" / "triton" / "resources.md").read_text()
    assert {name for name in kernels() if f".{name}`" not in table} == set()


def kernels() -> set[str]:
    """Names of the kernels in kernels/triton: jitted functions called *_kernel."""
    found = set()
    for name in MODULES:
        text = (ROOT / "kernels" / "triton" / f"{name}.py").read_text()
        found |= set(re.findall(r"@triton\.jit[^\n]*\ndef (\w+_kernel)\(", text))
    return found
