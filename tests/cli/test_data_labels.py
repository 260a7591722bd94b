"""`dmtl data labels`: probabilities for each task, published files, what is printed."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from .conftest import TASKS


def rows(path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row.pop("id"): row for row in csv.DictReader(file)}


def column(path, task: str) -> str:
    return "".join(row[task] for row in rows(path).values())


def test_probabilities(dmtl, tmp_path):
    words = ("data", "labels", "scenes", "--count", 300, "--setting", "random-labels", "--out", "l.csv")
    tasks = ("--tasks", "semseg", "edge", "depth")
    assert dmtl(*words, *tasks, "--p", 0.2, "edge=1", "depth=0").status == 0
    assert (
        column(tmp_path / "l.csv", "edge") == "1" * 300 and column(tmp_path / "l.csv", "depth") == "0" * 300
    )
    assert 30 < column(tmp_path / "l.csv", "semseg").count("1") < 95  # 60 and five deviations
    again = (*words, *tasks, "--p", "depth=0", "semseg=0.2", "edge=1")
    assert dmtl(*again).status == 0  # the same content, which may be written again
    assert dmtl(*again, "--seed", 1).status == 2
    for name, options in {"half.csv": ("--p", "0.5"), "default.csv": ()}.items():
        assert dmtl(*words[:-1], name, *tasks, *options).status == 0
    assert (tmp_path / "half.csv").read_bytes() == (tmp_path / "default.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--p", "0.3"], "--p can only be used with --setting random-labels"),
        (
            ["--setting", "random-labels", "--p", "semsge=0.3"],
            "p names 'semsge', which is not a task of the data",
        ),
        (["--setting", "random-labels", "--p", "x"], "p must be numbers or task=number, got 'x'"),
        (["--setting", "random-labels", "--p", "nan"], "p must be from 0 to 1, got 'nan'"),
        (["--setting", "random-labels", "--p", "edge=-1"], "p must be from 0 to 1, got 'edge=-1'"),
        (["--setting", "random-labels", "--p", "0"], "p must be above 0 for one task at least"),
        (
            ["--setting", "some"],
            '--setting must be "one-label", "random-labels" or "full" (--from takes files)',
        ),
        (["--from", "nothing.pth"], "nothing.pth: cannot be read"),
    ],
)
def test_one_line_for_what_cannot_be(dmtl, tmp_path, options, message):
    status, _, err = dmtl("data", "labels", "scenes", "--count", 4, *options)
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "labels.csv").exists()


def test_a_published_file_as_csv(dmtl, tmp_path):
    table = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1]]).float()
    torch.save({"labels_weights": table}, tmp_path / "one.pth")
    status, out, _ = dmtl("data", "labels", "--from", "one.pth", "--out", "one.csv")
    assert status == 0 and out.startswith("4 labels for 3 images\n")
    assert "Images by their number of labels: 2 with 1, 1 with 2" in out
    assert (tmp_path / "one.csv").read_text() == (
        "id,semseg,depth,normals\ntrain/0,1,0,0\ntrain/1,0,1,1\ntrain/2,0,0,1\n"
    )
    lines = [line.split() for line in out.splitlines()]
    assert ["depth", "1", "33%", "0", "1"] in lines and ["normals", "2", "67%", "0", "1"] in lines
    assert dmtl("data", "labels", "--from", "one.csv", "--tasks", "normals", "--out", "two.csv").status == 0
    assert column(tmp_path / "two.csv", "normals") == "011"


def test_a_published_file_for_a_data_set(dmtl, tmp_path, folder):
    """Rows by id in the order of the data; labels that the data lack are none."""
    (folder / "cracks" / "c.png").unlink()
    lists = {"cracks": ["d", "c", "z"], "semseg": ["c", "a"], "height": ["b"], "normals": []}
    np.save(tmp_path / "some.npy", np.array(lists, dtype=object), allow_pickle=True)
    assert dmtl("data", "labels", folder, "--from", "some.npy", "--out", "l.csv").status == 0
    assert (tmp_path / "l.csv").read_text() == (
        f"id,{','.join(TASKS)}\n"  # semseg, normals, cracks, height
        "a,1,0,0,0\nb,0,0,0,1\nc,1,0,0,0\nd,0,0,1,0\n"
    )
