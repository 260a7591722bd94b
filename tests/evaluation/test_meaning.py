"""Model, data set and saved maps are matched by what their numbers mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.cli.eval import main
from dmtl.data import open_dataset
from dmtl.errors import ConfigError, DataError
from dmtl.evaluation.protocol import evaluate
from dmtl.evaluation.saved_maps import saved_tasks
from dmtl.evaluation.scoring import score
from dmtl.models import create_model
from dmtl.predict import Predictor
from dmtl.tasks import make_task
from tests.train.conftest import TASKS

NAMES = TASKS["semseg"]["classes"]
ORDERS = [[2, 0, 1], [0, 2, 1], [2, 1, 0]]


@pytest.fixture(scope="module")
def model(images, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tasks = open_dataset(images, "train").tasks
    options = dict(width=16, heads=2, backbone_width=8, blocks=1, decoder_blocks=1, beta_end=0.2)
    folder = tmp_path_factory.mktemp("model")
    create_model("diffusionmtl", tasks, **options).save_pretrained(folder)
    return folder


@pytest.fixture
def reordered(images, tmp_path):
    """reordered([2, 0, 1]) -> the same data set with its classes in that order."""

    def write(order: list[int], **changes) -> Path:
        root = tmp_path / "data"
        shutil.copytree(images, root)
        for path in (root / "semseg").iterdir():
            Image.fromarray(np.argsort(order).astype(np.uint8)[np.asarray(Image.open(path))]).save(path)
        tasks = {name: {**options, **changes.get(name, {})} for name, options in TASKS.items()}
        tasks["semseg"] = {"kind": "classes", "classes": [NAMES[id] for id in order]} | changes.get(
            "semseg", {}
        )
        (root / "dataset.yaml").write_text(yaml.safe_dump({"name": "x", "tasks": tasks}, sort_keys=False))
        return root

    return write


@pytest.mark.parametrize("order", ORDERS)
def test_classes_in_another_order_are_scored_by_name(model, images, reordered, order):
    same, other = (evaluate(model, root, initial=True) for root in (images, reordered(order)))
    assert list(other) == list(same)
    for key in same:
        assert other[key] == pytest.approx(same[key], rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("written_by", ["predict", "eval"])
def test_saved_maps_are_scored_by_name(model, images, reordered, tmp_path, order, written_by):
    """maps.json says which id is which class, whoever wrote it."""
    other = reordered(order)
    if written_by == "predict":
        Predictor(model).predict_files([images / "images"], tmp_path / "maps", pictures=False)
        sources = [images, other]
    else:
        main([str(model), "--data", str(other), "--save-maps", str(tmp_path / "maps"), "--float-maps"])
        sources = [other, images]
    figures = []
    for number, root in enumerate(sources):
        words = ["--from-maps", str(tmp_path / "maps"), "--data", str(root), "--json"]
        main([*words, str(tmp_path / f"{number}.json")])
        figures.append(json.loads((tmp_path / f"{number}.json").read_text())["metrics"]["semseg"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-9)
    if written_by == "eval":  # with the noise of the evaluation
        assert figures[0] == pytest.approx(evaluate(model, images)["semseg"], rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"semseg": {"classes": ["sky", "road", "bus"]}}, ["sky, road, car", "sky, road, bus", "by name"]),
        ({"semseg": {"classes": ["sky", "road"]}}, ["sky, road, car there and sky, road here"]),
        ({"semseg": {"classes": 4}}, ["sky, road, car there and class 0, class 1, class 2, class 3 here"]),
        ({"heat": {"inverse": True}}, ["'heat'", "inverse is False there and True here"]),
        ({"heat": {"distance": True}}, ["'heat'", "unit is '' there and 'm' here"]),
    ],
)
def test_other_meanings_are_refused(model, images, reordered, tmp_path, changes, words):
    other = reordered([0, 1, 2], **changes)
    (task,) = changes
    Predictor(model).predict_files([images / "images" / "i8.png"], tmp_path / "maps", pictures=False)
    with pytest.raises(ConfigError) as error:
        evaluate(model, other)
    assert all(word in str(error.value) for word in words)
    with pytest.raises((ConfigError, DataError)):
        main(["--from-maps", str(tmp_path / "maps"), "--data", str(other), "--tasks", task])
    assert "edge" in evaluate(model, other, tasks=["edge"])  # the others still mean the same


def test_options_that_do_not_change_a_value_may_differ(model, images, reordered):
    changes = {"heat": {"score": "abs_err", "low": 0, "high": 9}, "semseg": {"ignore": 77, "weight": 3}}
    assert evaluate(model, reordered([0, 1, 2], **changes))["semseg"] == evaluate(model, images)["semseg"]


def test_classes_without_names_are_matched_by_id(model, images, reordered):
    """As those of the published checkpoint."""
    other = evaluate(model, reordered([0, 1, 2], semseg={"classes": 3}))["semseg"]
    assert other["mIoU"] == evaluate(model, images)["semseg"]["mIoU"]


def test_a_model_scored_in_python_is_refused_too(model, images):
    data = open_dataset(images, "val")
    with pytest.raises(ConfigError, match="task 'semseg' of the model .*matched by name"):
        score(Predictor(model).engine, [next(iter(_batches(data)))], tasks={"semseg": make_task("semseg")})


def _batches(data):
    from dmtl.data import eval_transform, make_loader

    return make_loader(data, None, eval_transform(), batch_size=2, shuffle=False)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "scalar"}, "tasks.semseg.kind is 'scalar', expected 'classes'"),
        ({"classes": "sky"}, "tasks.semseg.classes is 'sky', expected a list of names"),
        (["sky"], "tasks.semseg is not an object"),
    ],
)
def test_maps_of_another_kind_are_refused(tmp_path, entry, message):
    (tmp_path / "semseg").mkdir()
    (tmp_path / "maps.json").write_text(json.dumps({"tasks": {"semseg": entry}}))
    with pytest.raises(DataError, match=message):
        saved_tasks(tmp_path, {"semseg": make_task("semseg")})
    (tmp_path / "depth").mkdir()
    (tmp_path / "maps.json").write_text(json.dumps({"tasks": {"depth": {"unit": "mm"}}}))
    with pytest.raises(DataError, match="tasks.depth.unit is 'mm', expected 'm' as in the data set"):
        saved_tasks(tmp_path, {"depth": make_task("depth")})


def test_names_of_classes_are_compared_in_one_normal_form():
    mine = make_task("s", "classes", classes=["cafe\u0301", "b"])
    theirs = make_task("s", "classes", classes=["b", "caf\u00e9"])
    assert mine.to_terms_of(theirs)(torch.tensor([[0, 1]])).tolist() == [[1, 0]]
