"""`dmtl data`: check, show, labels, convert, export."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_fixture

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


def test_check_groups_and_counts(dmtl, tmp_path, folder):
    """A table of kinds, at most so many lines of each, all of them as JSON."""
    for id in "abcd":
        (folder / "semseg" / f"{id}.png").write_bytes(b"damaged")
    (folder / "cracks" / "z.png").write_bytes(b"")
    (folder / "splits" / "val.txt").write_text("e\nf\nghost\n")
    status, out, _ = dmtl("data", "check", folder, "--lines", 2, "--json", "all.json", "--workers", 2)
    assert status == 1
    counts = [line.split("│")[2].strip() for line in out.splitlines() if line.startswith("│")]
    assert [count for count in counts if count] == ["4", "1", "1", "1"]
    shown = [line for line in out.splitlines() if "semseg/" in line]
    assert len(shown) == 2 and "  and 2 more (--lines 4 or --json FILE shows them)" in out
    assert out.splitlines()[-1] == f"{folder}: 7 problems"
    stored = json.loads((tmp_path / "all.json").read_text())
    assert stored["images"] == 6 and stored["data"] == str(folder)
    assert [p["kind"] for p in stored["problems"]].count("file") == 4
    assert {p["where"] for p in stored["problems"] if p["kind"] == "file"} == {
        str(folder / "semseg" / f"{id}.png") for id in "abcd"
    }
    assert {p["kind"] for p in stored["problems"]} == {"file", "label", "split", "unlisted"}


def test_check_of_a_benchmark_as_distributed(dmtl, tmp_path):
    write_fixture("nyud-13", tmp_path / "nyu", train=2, val=2, size=(32, 48))
    status, out, _ = dmtl("data", "check", "nyu")
    assert status == 0 and "nyu: 4 images in train, val, nothing wrong" in out
    (tmp_path / "nyu" / "train" / "normal" / "1.npy").write_bytes(b"")
    status, out, _ = dmtl("data", "check", "nyu")
    assert status == 1 and "nyu/train/normal/1.npy" in out


def test_check_of_a_split_that_is_not_there(dmtl, data):
    status, _, err = dmtl("data", "check", data, "--splits", "test")
    assert status == 2 and "unknown split 'test'" in err


def test_check_without_any_split(dmtl, folder):
    shutil.rmtree(folder / "splits")
    status, _, err = dmtl("data", "check", folder)
    message = "no list of ids; create splits/train.txt and splits/val.txt, one id per line"
    assert (status, err) == (2, f"dmtl data: {folder}/splits: {message}\n")


def test_the_folder_of_shards_is_not_their_name(dmtl, data):
    for split in ("train", "val"):
        assert dmtl("data", "export", data, "shards", "--split", split, "--shards", 1).status == 0
    message = "shards: a folder of shards, expected the shards themselves, such as "
    message += "'shards/{000000..000001}.tar'\n"
    assert dmtl("data", "check", "shards") == (2, "", f"dmtl data: {message}")
    assert dmtl("train", "--data.root", "shards") == (2, "", f"dmtl train: {message}")
    assert dmtl("data", "check", "shards/{000000..000001}.tar").status == 0
    Path("shards/000000.tar").rename("shards/first.tar")
    assert "such as 'shards/000001.tar'" in dmtl("data", "check", "shards").err


def test_show(dmtl, tmp_path, data):
    status, out, _ = dmtl("data", "show", data, "--count", 2, "--out", "sheet.png")
    assert status == 0
    assert all(task in out for task in TASKS)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 44 * (1 + len(TASKS)) and sheet.height >= 72


def test_show_page(dmtl, tmp_path, data):
    """The default is a page, in which every sample and task stands."""
    status, out, _ = dmtl("data", "show", data, "--count", 3)
    assert re.search(r"^\S+ train: \d+ images$", out, re.MULTILINE)
    assert status == 0 and out.splitlines()[-1] == "wrote data.html"
    text = (tmp_path / "data.html").read_text()
    assert text.count('class="tiles"') == 3 and all(f"<h3>{task} " in text for task in TASKS)
    status, _, err = dmtl("data", "show", data, "--out", "data.pdf")
    assert status == 2 and "'data.pdf' is neither a page nor a picture, expected .html or .png" in err


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


def test_an_edited_file_of_labels_is_not_overwritten(dmtl, tmp_path, data):
    path = tmp_path / "labels.csv"
    assert dmtl("data", "labels", data).status == 0
    assert dmtl("data", "labels", data).status == 0
    path.write_text(edited := path.read_text().replace("1", "0", 1))
    status, out, err = dmtl("data", "labels", data)
    assert (status, out) == (2, "") and path.read_text() == edited
    assert "labels.csv: exists with other content; choose another --out, or delete the file" in err
    path.unlink()
    assert dmtl("data", "labels", data).status == 0


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


def test_convert(dmtl, tmp_path):
    """A benchmark as distributed becomes a folder; the same command again finds nothing to do."""
    write_fixture("nyud-13", tmp_path / "nyu", train=3, val=2, size=(32, 48))
    status, out, _ = dmtl("data", "convert", "nyu", "out")
    assert status == 0
    assert "nyu: nyud-13, tasks semseg, depth, normals" in out
    assert "out train: 3 images, 3 of them written now, " in out
    semseg = next(line for line in out.splitlines() if "semseg" in line and "│" in line)
    assert semseg.count("%") == 2 and re.findall(r"│ +(\d+) ", semseg) == ["3", "2"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    status, out, _ = dmtl("data", "convert", "nyu", "out", "--workers", 2)
    assert status == 0
    assert [line.split(" (")[0] for line in out.splitlines() if line.endswith("nothing to do")] == [
        "out train: all 3 images are there",
        "out val: all 2 images are there",
    ]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert dmtl("data", "check", "out").status == 0


def test_convert_stops_at_a_damaged_file_and_goes_on(dmtl, tmp_path):
    write_fixture("nyud-13", tmp_path / "nyu", train=3, val=2, size=(32, 48))
    damaged = tmp_path / "nyu" / "train" / "depth" / "1.npy"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1])
    status, out, err = dmtl("data", "convert", "nyu", "out", "--splits", "train")
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("dmtl data: nyu/train/depth/1.npy: ") and "sample 'train/1'; 1 of 3 samples" in err
    status, out, _ = dmtl("data", "convert", "nyu", "out", "--splits", "train", "--skip-corrupt", 1)
    assert status == 0 and "skipped: nyu/train/depth/1.npy: " in out and "2 images, 1 of them" in out
    damaged.write_bytes(good)
    assert "3 images, 1 of them written now" in dmtl("data", "convert", "nyu", "out").out


def test_convert_says_what_it_cannot_convert(dmtl, tmp_path):
    (tmp_path / "photos").mkdir()
    for words, message in (
        (("photos", "out"), "photos: is empty, expected one of pascal-context"),
        (("nowhere", "out"), "nowhere: no such folder"),
        (("photos", "out", "--format", "nyud13"), "unknown format 'nyud13', did you mean 'nyud-13'?"),
    ):
        status, _, err = dmtl("data", "convert", *words)
        assert status == 2 and message in err
    assert not (tmp_path / "out").exists()
