"""Commands on a configuration that names several data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dmtl.cli import _plan
from dmtl.tasks.sheet import GAP
from tests.fixtures.sources import write_three

RUN = """
out = "{out}"
device = "cpu"
[data]
size = [32, 32]
labels = "full"
[[data.sources]]
root = "{rooms}"
weight = 2.0
[[data.sources]]
root = "{lines}"
rename = {{boundaries = "edge"}}
[[data.sources]]
root = "{street}"
[model]
width = 16
heads = 2
backbone_width = 8
blocks = 1
decoder_blocks = 1
[optim]
steps = 2
batch_size = 4
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "three.toml"
    path.write_text(RUN.format(out=tmp_path / "run", **write_three(tmp_path)))
    return path


def cells(out: str, name: str) -> list[str]:
    """The cells of the first row of a table that begins with a name."""
    row = next(line for line in out.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_check_and_show(dmtl, config, tmp_path):
    assert "22 images in train, val of 3 sources, nothing wrong" in dmtl("data", "check", config).out
    shown = dmtl("data", "show", config, "--out", tmp_path / "s.png").out
    assert cells(shown, "rooms") == ["rooms", "6", "6", "6", "0"]
    assert cells(shown, "lines") == ["lines", "4", "0", "0", "4"]
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width == 4 * (120 + GAP) + GAP  # the picture and three labels, with room for captions
    dmtl("data", "show", config, "--out", tmp_path / "s.html")
    assert '<th scope="row">street</th><td class="num">5</td>' in (tmp_path / "s.html").read_text()


def test_check_names_the_source(dmtl, config, tmp_path):
    (tmp_path / "lines" / "boundaries" / "1.png").write_bytes(b"no image")
    for number in range(5):
        Image.new("L", (20, 40), 9).save(tmp_path / "street" / "semseg" / f"{number}.png")
    found = tmp_path / "problems.json"
    checked = dmtl("data", "check", config, "--json", found)
    problems = [(p["kind"], p["where"]) for p in json.loads(found.read_text())["problems"]]
    assert ("file", str(tmp_path / "lines" / "boundaries" / "1.png")) in problems
    assert ("label", "street: semseg") in problems
    assert checked.status == 1 and "2 problems" in checked.out
    config.write_text(config.read_text().replace('rename = {boundaries = "edge"}', 'drop = ["edge"]'))
    refused = dmtl("data", "check", config)
    assert refused.status == 2 and "drop of lines: unknown task 'edge'" in refused.err


def test_a_dry_run_shows_sources(dmtl, config, monkeypatch):
    for name in ("measure", "forecast", "print_forecast"):
        monkeypatch.setattr(_plan, name, lambda *_: {})
    plan = dmtl("train", config, "--dry-run").out
    assert cells(plan, "rooms") == ["rooms", "6", "2.2", "3", "semseg 6, depth 6"]


def test_train_evaluate_and_report(dmtl, config, tmp_path):
    trained = dmtl("train", config).out
    score = cells(trained, "edge")[2]  # which lines alone has labels of
    assert cells(trained.partition("By source")[2], "edge")[2:] == ["", score, "", score]
    scores = tmp_path / "eval.json"
    out = dmtl("eval", tmp_path / "run", "--data", config, "--count", 1, "--json", scores).out
    assert "By source" in out
    found = json.loads(scores.read_text())
    assert found["protocol"]["images"] == 3 and found["sources"]["lines"].keys() == {"edge", "initial/edge"}
    page = tmp_path / "report.html"
    dmtl("report", tmp_path / "run", "--out", page, "--samples", 0, "--pictures", 1)
    text = page.read_text()
    assert "rooms+lines+street" in text and '<h2 id="h-sources">By source</h2>' in text
    assert '<th scope="row">lines</th><td class="num">4</td>' in text  # images with labels


def test_a_union_is_written_as_one_folder(dmtl, config, tmp_path):
    dmtl("data", "export", config, tmp_path / "one", "--split", "val")
    assert (tmp_path / "one" / "edge" / "lines" / "4.png").exists()
    assert "7 images in val, nothing wrong" in dmtl("data", "check", tmp_path / "one", "--splits", "val").out
