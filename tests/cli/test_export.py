"""`dmtl export` on a run's folder, and what it says to wrong words."""

from __future__ import annotations

import json

import pytest
import torch

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
    refused(dmtl("export", "nowhere"), "nowhere", "config.json")
    refused(dmtl("export"), "missing MODEL")
