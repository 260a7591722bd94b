"""`dmtl data import`: from the files of annotation tools to a trained model and a prediction."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dmtl.data.imports import FORMATS
from tests.data.annotations import WRITERS, write_huggingface, write_images

from .conftest import SHORT


def words_of(made: dict) -> list:
    words: list = []
    for name, value in made.items():
        if name == "map":
            words += ["--map", *(f"{task}={column}" for task, column in value.items())]
        elif name != "source":
            words += [f"--{name}", *([value] if isinstance(value, str) else value)]
    return words


@pytest.mark.parametrize("format", WRITERS)
def test_from_annotations_to_a_prediction(dmtl, tmp_path, format):
    made = WRITERS[format](tmp_path / "source")
    words = ["data", "import", format, made["source"], "set", *words_of(made), "--val", "0.3"]
    words += ["--empty"] if format in ("coco", "cvat") else []
    status, out, err = dmtl(*words)
    assert status == 0, err
    assert "set train: 3 images, 3 of them written now" in out and "set val: 1 images" in out
    status, out, err = dmtl("data", "show", "set", "--out", "set.png")
    assert status == 0 and (tmp_path / "set.png").stat().st_size > 1000, err
    assert dmtl("data", "check", "set").status == 0
    status, _, err = dmtl("train", "--data.root", "set", "--data.labels", "full", "--out", "run", *SHORT)
    assert status == 0, err
    status, _, err = dmtl("predict", "run", "set/images", "--out", "maps")
    assert status == 0, err
    described = json.loads((tmp_path / "maps" / "maps.json").read_text())["tasks"]["semseg"]["classes"]
    assert described[-2:] == ["car", "tree"]
    name = "semseg/row/000000.png" if format == "huggingface" else "semseg/a.png"
    with Image.open(tmp_path / "maps" / name) as picture:
        assert picture.size == (64, 48)


def test_what_is_left_out_is_printed(dmtl, tmp_path):
    made = WRITERS["coco"](tmp_path / "s")
    (tmp_path / "s" / "images" / "b.png").unlink()
    words = ["data", "import", "coco", made["source"], "set", "--images", made["images"]]
    status, _, err = dmtl(*words)
    assert status == 2 and "1 of 4 are missing" in err and "--skip-corrupt 1" in err
    write_images(tmp_path / "s" / "images" / "more")
    status, out, _ = dmtl(*words, "--skip-corrupt", 1, "--classes", "tree", "--split", "train")
    assert status == 0
    assert "left out: 4 image files that instances.json does not list (a.png, b.png, c.png, ...)" in out
    assert "left out: labels that --classes does not name: 'car' (1)" in out
    assert "skipped:" in out and "b.png" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["yolo", "s", "set"], "FORMAT must be one of coco, coco-panoptic, coco-stuff, labelme, cvat"),
        (["huggingface", "s", "set", "--map", "semseg"], "--map must be NAME=VALUE"),
        (["huggingface", "s", "set", "--map", "a=b", "a=c"], "--map must be NAME=VALUE with different names"),
        (
            ["huggingface", "s", "set", "--map", "depth=d", "--scale", "depth=x"],
            "--scale must be TASK=NUMBER",
        ),
        (["huggingface", "no/such/thing", "set", "--map", "depth=d"], "no such file or folder"),
        (["labelme", "nowhere", "set"], "nowhere: no such folder, expected one with a LabelMe JSON file for"),
        (["coco", "nowhere.json", "set"], "nowhere.json: cannot be read"),
    ],
)
def test_wrong_words_are_one_line(dmtl, tmp_path, words, expected):
    status, out, err = dmtl("data", "import", *words)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert expected in err and list(tmp_path.iterdir()) == []


def test_datasets_library_does_not_print(dmtl, tmp_path):
    """Reading a folder of `datasets` prints what the command prints, nothing else."""
    made = write_huggingface(tmp_path / "source")
    result = dmtl("data", "import", "huggingface", made["source"], "set", *words_of(made))
    assert result.status == 0 and result.err == ""


def commands_of_the_guide() -> list[list[str]]:
    text = (Path(__file__).parents[2] / "docs" / "importing.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line)[3:] for line in lines if line.startswith("dmtl data import")]


@pytest.mark.parametrize("words", commands_of_the_guide(), ids=lambda words: words[0])
def test_commands_of_the_guide(dmtl, words, monkeypatch):
    """Their options exist and suit the format: all that is missing here are the files."""

    def load_nothing(name):  # instead of asking the Hub
        raise FileNotFoundError(f"no such file: {name}")

    monkeypatch.setattr("datasets.load_dataset", load_nothing)
    assert words[0] in FORMATS.names()
    status, _, err = dmtl("data", "import", *words)
    assert status == 2 and re.search(r"no such folder|cannot be read|no such file", err), err


def test_the_guide_knows_every_format():
    assert {words[0] for words in commands_of_the_guide()} == set(FORMATS.names())
