"""A benchmark from its distribution to a row of the paper's table, by the commands that a user types."""

from __future__ import annotations

import json

import pytest

from dmtl.data import Folder, open_dataset
from tests.cli.conftest import _dmtl  # noqa: F401  the fixture `dmtl`
from tests.fixtures import write_fixture

TASKS = {
    "pascal-context": ["semseg", "human_parts", "sal", "normals", "edge"],
    "nyud-13": ["semseg", "depth", "normals"],
    "nyud-40": ["semseg", "depth", "normals", "edge"],
    "cityscapes-7": ["semseg", "depth"],
    "cityscapes-19": ["semseg", "depth"],
    "cityscapes-raw": ["semseg", "depth"],
}
SMALL = [
    "--model.width",
    "8",
    "--model.heads",
    "2",
    "--model.backbone-width",
    "8",
    "--data.size",
    "64",
    "64",
    "--optim.steps",
    "2",
    "--optim.batch-size",
    "2",
    "--optim.warmup",
    "0",
    "--log.every",
    "1",
    "--data.workers",
    "0",
]


QUICK = ("pascal-context",)


@pytest.mark.parametrize(
    "format", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in TASKS]
)
def test_from_distribution_to_table(dmtl, tmp_path, format):
    def run(*words):
        result = dmtl(*words)
        assert result.status == 0, f"dmtl {' '.join(map(str, words))}\n{result.out}\n{result.err}"
        return result.out

    write_fixture(format, "source", train=10, val=2, size=(64, 80))
    run("data", "convert", "source", "folder")
    assert "nothing wrong" in run("data", "check", "folder")
    run("data", "show", "folder", "--count", 2, "--out", "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    run("data", "labels", "folder", "--setting", "one-label", "--out", "labels.csv")

    converted = Folder("folder", "train")
    assert sorted(converted.tasks) == sorted(TASKS[format])
    _same_values(open_dataset("source", "train"), converted)

    baseline = ["--model.diffusion", "none"]
    for name, options in {"feature": [], "mtl": baseline}.items():
        out = f"runs/{name}"
        run("train", "--data.root", "folder", "--data.labels", "labels.csv", *SMALL, *options, "--out", out)
        run("eval", out, "--data", "folder", "--published", "--json", f"{out}/eval.json")
    for task in converted.tasks:
        out = f"runs/stl-{task}"
        options = ["--data.tasks", task, "--data.labels", "one-label", *baseline]
        run("train", "--data.root", "folder", *SMALL, *options, "--out", out)
        run("eval", out, "--data", "folder", "--published", "--json", f"{out}/eval.json")

    scored = json.loads((tmp_path / "runs/feature/eval.json").read_text())
    assert set(scored["metrics"]) >= set(converted.tasks)
    if "edge" in converted.tasks:
        assert 0 <= scored["metrics"]["edge"]["odsF_seism"] <= 100
        assert scored["primary"]["edge"][0] == "odsF_seism"
    table = run("report", "--paper", "runs", "--json", "table.json")
    for method in ("STL", "MTL", "Feature"):
        assert method in table
    assert (tmp_path / "table.json").is_file()


def _same_values(source, folder) -> None:
    """The folder reads what the distribution reads, to the bit."""
    assert source.ids == folder.ids and list(source.tasks) == list(folder.tasks)
    for index in range(len(source)):
        theirs, ours = source.read(index), folder.read(index)
        assert theirs.image.equal(ours.image)
        assert list(theirs.labels) == list(ours.labels)
        for task, label in theirs.labels.items():
            assert label.equal(ours.labels[task]), task
        theirs, ours = source.boundaries(index), folder.boundaries(index)
        assert (theirs is None) == (ours is None)
        assert theirs is None or theirs.equal(ours)
