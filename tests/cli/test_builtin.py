"""The model that comes with dmtl, on the command line: made from a run, found without a name, described."""

from __future__ import annotations

import json
import shutil

import pytest

from dmtl.cli.predict import _split
from dmtl.errors import ConfigError
from dmtl.models import pretrained
from dmtl.models.pretrained import BUILTIN
from dmtl.predict.maps import FORMAT
from dmtl.report.runs.card import BEGIN, END
from dmtl.runtime.files import write_json
from dmtl.text import fixed

from .conftest import TASKS
from .test_bad_input import refused


@pytest.fixture
def builtin(dmtl, tmp_path, trained, monkeypatch):
    """A tiny run in the place of the model that comes with dmtl, made by the command that makes that one."""
    folder = tmp_path / "package" / BUILTIN
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"# mine\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    status, out, err = dmtl("convert", trained, folder, "--half")
    assert (status, err) == (0, "") and "S = 2, tasks: semseg (3), normals (3)" in out and "MB)" in out
    monkeypatch.setattr(pretrained, "BUILTIN_FOLDER", folder)
    return folder


def test_the_card_has_the_results_of_the_run(builtin, trained):
    card = (builtin / "README.md").read_text()
    assert card.startswith("# mine\n\nBefore.\n\n") and card.endswith("\n\nAfter.\n") and "old" not in card
    found = json.loads((trained / "metrics.json").read_text())
    assert "- training: 2 steps of 2 images of 32 x 32 pixels in " in card
    for task, (metric, value, _) in found["primary"].items():
        [row] = [line for line in card.splitlines() if line.startswith(f"| {task} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2].startswith(metric)
        assert cells[3:] == [fixed(value), fixed(found["metrics"][f"initial/{task}"][metric])]


def test_a_card_without_a_place_for_results_is_refused(dmtl, tmp_path, trained):
    (tmp_path / "README.md").write_text("Mine.\n")
    refused(dmtl("convert", trained, "."), "README.md: lacks the lines <!-- begin")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert dmtl("convert", trained / "model", "other").status == 0  # a model folder has no results
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_photo_alone(dmtl, tmp_path, builtin, data):
    """No MODEL, no --out: one line says which model, and where its card is."""
    shutil.copy(data / "images" / "a.png", tmp_path / "photo.png")
    status, out, err = dmtl("predict", "photo.png")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"model: six-tasks, which comes with dmtl; see {builtin / 'README.md'}"
    assert lines[1].startswith("1 image predicted into predictions")
    assert lines[-1] == "pictures of all maps: predictions/overview"
    for task in TASKS:
        assert (tmp_path / "predictions" / task / "photo.png").is_file()
    assert (tmp_path / "predictions" / "overview" / "photo.png").is_file()
    by_name = dmtl("predict", BUILTIN, "photo.png").out
    assert "1 image predicted into predictions, 1 of them earlier" in by_name and "model:" not in by_name


def test_by_name_in_other_commands(dmtl, builtin, data):
    out = dmtl("eval", BUILTIN, "--data", data, "--tasks", "cracks").out
    assert "six-tasks on" in out and "pixelF" in out
    out = " ".join(dmtl("info", BUILTIN, "--size", 32, 32).out.split())
    for words in ("semseg sky, ground, house", "MB, part of the package", "use research", "model card"):
        assert words in out, words


def test_info_names_it(dmtl):
    assert "six-tasks, the model that comes with dmtl: dmtl info six-tasks" in dmtl("info").out


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ("a.jpg", None),
        ("missing.JPG b.weird", None),
        ("clip.mp4 photos", None),
        ("photos", None),
        ("photos a.jpg", None),
        ("run a.jpg", "run"),
        ("folder photos", "folder"),
        ("b.weird a.jpg", "b.weird"),
        ("official.pth.tar photos", "official.pth.tar"),
        ("org/name a.jpg", "org/name"),
        ("six-tasks b.weird", "six-tasks"),
        ("six-tasks run", "six-tasks"),
    ],
)
def test_which_word_is_the_model(tmp_path, monkeypatch, words, model):
    lay_out(tmp_path, monkeypatch)
    listed = words.split()
    assert _split(listed, "out") == (model, listed if model is None else listed[1:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run", "run is taken as MODEL, and no IMAGE follows it; if it holds images, pass six-tasks run"),
        ("b.weird", "b.weird is taken as MODEL, and no IMAGE follows it; .* pass six-tasks b.weird"),
        ("a.jpg run", "MODEL must come before the images, got run after a.jpg"),
        ("photos a.jpg six-tasks", "MODEL must come before the images, got six-tasks after photos"),
        (
            "runs a.jpg",
            r"runs: is neither MODEL \(no config.json\) nor IMAGE \(no images .* folder of one run",
        ),
        ("runs", r"runs: is neither MODEL .* nor IMAGE"),
        ("maps a.jpg", r"maps: is neither MODEL .* nor IMAGE \(holds maps that dmtl wrote"),
        ("phtos", "phtos: no such file or folder, expected an image, a video or a folder of them"),
    ],
)
def test_words_that_do_not_say_what_is_the_model(tmp_path, monkeypatch, words, message):
    lay_out(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=message):
        _split(words.split(), "out")


@pytest.mark.parametrize("words", ["runs a.jpg", "six-tasks a.jpg", "six-tasks"])
def test_a_folder_that_may_be_the_model_is_refused_before_predicting(dmtl, tmp_path, monkeypatch, words):
    lay_out(tmp_path, monkeypatch)
    (tmp_path / "six-tasks").mkdir()
    (tmp_path / "six-tasks" / "b.jpg").touch()
    status, out, err = dmtl("predict", *words.split())
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert not (tmp_path / "predictions").exists()
    assert words != "six-tasks a.jpg" or "pass ./six-tasks for the path" in err


def lay_out(root, monkeypatch):
    for file in (
        "a.jpg",
        "b.weird",
        "photos/c.jpg",
        "run/config.toml",
        "run/images/d.jpg",
        "folder/config.json",
        "runs/mine/log.jsonl",
        "maps/semseg/a.png",
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    write_json(root / "maps" / "maps.json", {"format": FORMAT})
    monkeypatch.chdir(root)
