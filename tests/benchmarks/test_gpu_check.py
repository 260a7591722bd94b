"""The GPU command cannot be run here; that its code works is shown at toy sizes on the CPU, and that a part
can fail or hang without harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cases, contenders, gpu_check, harness
from tests.fakecuda import FakeCuda

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.gpu_check"]
ABSENT = ("tyro", "docstring_parser", "typeguard", "av")
"""Packages that a machine with torch and Triton need not have."""


def bare(folder: Path) -> dict[str, str]:
    """Environment in which these packages cannot be imported."""
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here', name='{name}')\n")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_needs_no_package_of_the_command_line(tmp_path):
    """Every module that a part imports, in a Python without them."""
    modules = ["gpu_check", "__main__", "roofline", "memory", "training", "harness"]
    code = "; ".join(f"import benchmarks.{name}" for name in modules)
    code += "; import dmtl.engine.engine, dmtl.train.step, tests.ops.small_calls"
    environment = bare(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    refused = subprocess.run([sys.executable, "-c", "import tyro"], env=environment, capture_output=True)
    assert refused.returncode == 1


@pytest.mark.slow
def test_rows_at_toy_size(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [*COMMAND, "--device", "cpu", "--only", "engine", "training", "expert", "--seconds", "1200"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, env=bare(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [row["name"] for row in rows]
    wanted = {f"inference 1x64x64 {who} fp32" for who in ("published", "expert", "dmtl", "roofline all all")}
    assert wanted | {"training one 5x64x64 dmtl fp32", "training one 6x64x64 expert fp32"} <= set(names)
    assert not [row for row in rows if "error" in row]
    assert all(row["torch"] == torch.__version__ for row in rows)
    assert names[0] == "inference 1x64x64 dmtl fp32"  # ours first, the expert last
    assert names.index("part training") < names.index("inference 1x64x64 expert fp32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.strip() == "gpu-check needs a CUDA device, but torch finds none here"


@pytest.fixture
def rows(tmp_path) -> gpu_check.Rows:
    return gpu_check.Rows(tmp_path / "rows.jsonl", "cpu")


def written(rows: gpu_check.Rows) -> dict[str, dict]:
    return {row["name"]: row for row in map(json.loads, rows.path.read_text().splitlines())}


def test_commands_fail_alone(rows):
    """Each leaves a row."""
    python = [sys.executable, "-c"]
    commands = {"good": [*python, "print('3 passed')"], "bad": [*python, "raise SystemExit('it crashed')"]}
    assert not gpu_check.run_all(rows, commands, limit_s=600.0)
    found = written(rows)
    assert found["good"]["summary"] == "3 passed"
    assert found["bad"]["error"] == "it crashed" and found["bad"]["rc"] == 1


def test_a_command_that_hangs_is_stopped_with_its_children(rows):
    child = [sys.executable, "-c", "import time; time.sleep(3600)"]
    hang = [sys.executable, "-c", f"import subprocess; subprocess.run({child!r})"]
    assert not gpu_check.run_all(rows, {"hung": hang}, limit_s=2.0)  # returns once nobody holds its output
    found = written(rows)["hung"]
    assert found["rc"] == 124 and "stopped after" in found["error"]


def test_a_part_that_raises_is_a_row(rows, monkeypatch):
    def raises(rows, device, limit_s):
        rows.add("first", value=1)
        raise ValueError("no such kernel")

    monkeypatch.setitem(gpu_check.PARTS, "training", (raises, 10))
    assert gpu_check.child(rows, "training", "cpu", 10.0) == 1
    assert written(rows)["first"]["value"] == 1
    assert written(rows)["training"]["error"] == "ValueError: no such kernel"


@pytest.mark.parametrize(
    ("said", "code", "passed"),
    [
        ("ERROR SUMMARY: 0 errors", 0, True),
        ("ERROR SUMMARY: 2 errors", 9, False),
        ("Error: the device is not supported", 1, True),
        ("stopped after 20 s", 124, True),
    ],
)
def test_a_sanitizer_without_a_result_is_left_out(rows, monkeypatch, said, code, passed):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: sys.executable)
    monkeypatch.setattr(gpu_check, "finished", lambda *_: (code, said))
    assert gpu_check.run_sanitizer(rows, "cuda", 60.0) is passed
    row = written(rows)["memcheck"]
    assert row.get("summary") == (said if "SUMMARY" in said else None)
    assert ("left_out" in row) is ("SUMMARY" not in said)


def test_limits_fit_into_ten_minutes():
    assert list(gpu_check.PARTS)[-1] == "expert" and list(gpu_check.PARTS).index("engine") <= 2
    assert sum(limit_s for _, limit_s in gpu_check.PARTS.values()) < 600


def test_a_contender_that_cannot_run_leaves_the_others(monkeypatch):
    """It is made, but its first call fails."""
    case = cases.Case(size=(32, 32), options={"width": 16, "backbone_width": 8, "blocks": 1})
    model, image = case.build(), case.image()

    def published(*args, **options):
        def run(image, noise=None):
            raise RuntimeError("no kernel image is available")

        return contenders.Contender("published", "fp32", run)

    monkeypatch.setattr(contenders, "published", published)
    wanted = [("published", "fp32"), ("dmtl", "fp32")]
    (_, broken), (ours, good) = contenders.checked(model, image, case, wanted)
    assert broken["error"] == "RuntimeError: no kernel image is available"
    assert ours is not None and "error" not in good


def test_operators_are_timed_without_the_host(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(harness, "DEVICE", "cuda")
    monkeypatch.setattr(harness, "_flusher", lambda: lambda: fake.kernel(1e-4))

    def call() -> None:
        fake.host(3e-4)  # an adapter in Python
        fake.kernel(8e-6)

    assert max(harness.times_s(call)) == pytest.approx(8e-6, rel=0.01)
