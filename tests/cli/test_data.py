"""`dmtl data`: check, show, labels, export."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from .conftest import TASKS


def test_check(dmtl, data):
    status, out, _ = dmtl("data", "check", data)
    assert status == 0
    assert "6 images in train, val, nothing wrong" in out


def test_check_lists_everything(dmtl, folder):
    """Every fault is found in one reading, each with its file; the status is 1."""
    (folder / "images" / "a.png").write_bytes((folder / "images" / "a.png").read_bytes()[:300])
    Image.fromarray(np.full((36, 44), 7, np.uint8)).save(folder / "semseg" / "b.png")
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(folder / "cracks" / "c.png")
    status, out, _ = dmtl("data", "check", folder, "--splits", "train")
    lines = out.splitlines()
    assert status == 1
    for name in ("images/a.png", "semseg/b.png", "cracks/c.png"):
        assert [name in line for line in lines].count(True) == 1
    assert lines[-1] == f"{folder}: 3 problems"


def test_show(dmtl, tmp_path, data):
    status, out, _ = dmtl("data", "show", data, "--count", 2, "--out", "sheet.png")
    assert status == 0
    assert all(task in out for task in TASKS)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 44 * (1 + len(TASKS)) and sheet.height >= 72


def test_labels(dmtl, tmp_path, data):
    """The same table for the same seed, in a form that training takes."""
    for name, seed in (("one.csv", 1), ("same.csv", 1)):
        status, out, _ = dmtl("data", "labels", data, "--seed", seed, "--out", name)
        assert status == 0
        assert out.startswith("4 labels for 4 images\n")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "same.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "one.csv").open()))
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert all([row[task] for task in TASKS].count("1") == 1 for row in rows)


@pytest.mark.parametrize("setting", ["random-labels", "full"])
def test_other_settings(dmtl, tmp_path, data, setting):
    assert dmtl("data", "labels", data, "--setting", setting, "--out", "l.csv").status == 0
    counts = [[row[task] for task in TASKS].count("1") for row in csv.DictReader((tmp_path / "l.csv").open())]
    assert counts == [4] * 4 if setting == "full" else all(1 <= count <= 4 for count in counts)


def test_export_and_read_back(dmtl, tmp_path):
    """Rendered scenes as a folder, which checks clean."""
    for split, count in (("train", 2), ("val", 1)):
        assert (
            dmtl(
                "data", "export", "scenes", "rooms", "--split", split, "--count", count, "--size", 32, 40
            ).status
            == 0
        )
    status, out, _ = dmtl("data", "check", "rooms")
    assert status == 0, out
    assert "3 images in train, val, nothing wrong" in out
    with Image.open(next((tmp_path / "rooms" / "images").iterdir())) as image:
        assert image.size == (40, 32)
