"""OpenVINO and ONNX Runtime as contenders: they compute what the model computes, from both files."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks import contenders, memory, runtimes
from benchmarks.cases import Case
from benchmarks.race import Race

TOY = Case(
    size=(32, 64), steps=1, all_tasks=("semseg", "normals"),
    options={"width": 16, "backbone_width": 8, "blocks": 1, "decoder_blocks": 1},
)  # fmt: skip


@pytest.fixture(autouse=True)
def packages():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.parametrize("names", [runtimes.FROM_EXPORT, runtimes.FROM_PUBLISHED])
def test_race(names):
    """In fp32 at two batches, next to the engine; the second batch needs no second file."""
    for batch in (1, 2):
        race = Race(TOY.but(batch=batch), ["fp32"], [*names, "dmtl"])
        *others, ours = race.run(rounds=3)
        assert [row["contender"] for row in others] == list(names)
        for row in others:
            if row["contender"].endswith("openvino") and importlib.util.find_spec("openvino") is None:
                assert row["skipped"] == "the package openvino is not installed"
                continue
            assert row["difference"] < 1e-4 and row["class_pixels"] == 0
            assert row["rounds"] == 3 and ours[f"times_{row['contender']}"] > 0
        files = {runtimes.file_of(name, TOY.but(batch=batch)) for name in names}
        assert len(files) == 1


def test_a_package_that_is_absent(monkeypatch):
    """Its contender is skipped and says why; the others take part."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    ours, missing = Race(TOY, ["fp32"], ["dmtl", "openvino"]).rows[::-1]
    reason = "the package openvino is not installed"
    assert missing == {"contender": "openvino", "precision": "fp32", "skipped": reason}
    assert "error" not in ours and "skipped" not in ours
    row = memory.row(TOY, "openvino", "fp32")
    assert row["skipped"] == reason and row["case"] == "published"


def test_bf16_needs_its_units(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(runtimes, "_has_bf16", lambda: False)
    assert contenders.missing("openvino", "bf16") == "OpenVINO finds no bf16 units in this processor"
    assert contenders.missing("openvino", "fp32") is None
    assert contenders.missing("dmtl", "bf16") is None


def test_a_file_that_cannot_be_written(monkeypatch):
    """A row says so, in the race and for memory."""

    def fails(model, case, path):
        raise RuntimeError("the exporter gives up")

    monkeypatch.setattr(runtimes, "_write_export", fails)
    other = TOY.but(size=(64, 64))
    (row,) = Race(other, ["fp32"], ["onnxruntime"]).rows
    assert row["error"] == "RuntimeError: the exporter gives up"
    assert memory.row(other, "onnxruntime", "fp32")["error"] == "the exporter gives up"
