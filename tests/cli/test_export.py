"""`dmtl export` on a run's folder, and what it says to wrong words."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from .conftest import Result, environment
from .test_bad_input import refused


def test_export(dmtl, trained, tmp_path):
    options = [
        "--format",
        "program",
        "--size",
        32,
        44,
        "--tasks",
        "cracks",
        "semseg",
        "--steps",
        1,
        "--seed",
        3,
    ]
    status, out, err = dmtl("export", trained, *options, "--out", "files/small.pt2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("cracks: probability, float32 [batch, 32, 44], largest difference")
    assert lines[1].startswith("semseg: class id, int64 [batch, 32, 44], largest difference")
    assert lines[2].startswith("wrote files/small.pt2 (") and lines[2].endswith(" MB)")
    files = {"dmtl.json": ""}
    network = torch.export.load(tmp_path / "files" / "small.pt2", extra_files=files).module()
    assert network(torch.zeros(5, 3, 32, 44))["semseg"].shape == (5, 32, 44)
    about = json.loads(files["dmtl.json"])
    assert (about["steps"], about["seed"], list(about["outputs"])) == (1, 3, ["cracks", "semseg"])


@pytest.mark.slow
def test_default_name(dmtl, baseline, tmp_path):
    pytest.importorskip("onnxruntime")
    status, out, _ = dmtl("export", baseline, "--size", 32, 32, "--tasks", "cracks", "--input", "uint8")
    assert status == 0 and "wrote model.onnx" in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "semsag"], ["semsag", "did you mean 'semseg'"]),
        (["--size", 0, 32], ["size must be two positive numbers"]),
        (["--size", 32], ["--size"]),
        (["--format", "tflite"], ["tflite"]),
        (["--steps", 0], ["steps must be at least 1"]),
        (["--out", "model.pth"], ["model.pth: must end in .onnx"]),
        (["--format", "program", "--out", "/proc/model.pt2"], ["cannot write /proc/model.pt2"]),
        (["--format", "program", "--device", "tpu:0x"], ["device must be"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_wrong_words(dmtl, baseline, tmp_path, options, words):
    refused(dmtl("export", baseline, *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_missing_model(dmtl):
    refused(dmtl("export", "nowhere"), "nowhere: no such file or folder")
    refused(dmtl("export"), "Missing from dmtl export: MODEL")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script as compiler")
def test_broken_compiler(baseline, tmp_path):
    """In a process of its own: PyTorch remembers for its whole process what a compiler can do."""
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\n[ $1 = --version ] && exec echo g++ 12\necho out of licences >&2; exit 1\n")
    script.chmod(0o755)
    words = ["export", str(baseline), "--format", "pt2", "--size", "32", "44", "--out", "out/model.pt2"]
    done = subprocess.run(
        [sys.executable, "-m", "dmtl", *words],
        cwd=tmp_path,
        env=environment() | {"CXX": str(script), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    refused(
        Result(done.returncode, done.stdout, done.stderr), "working C++ compiler, yours said: out of licences"
    )
    assert list((tmp_path / "out").iterdir()) == []
