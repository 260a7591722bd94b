"""Making tasks from names, options and specs."""

import copy
import dataclasses
import json
import pickle

import pytest

from dmtl.errors import ConfigError
from dmtl.metrics import Metric
from dmtl.tasks import KINDS, KNOWN, Edge, Mask, Sal, make_task, task_from_spec
from tests.tasks.cases import TASKS, label_of, logits_of

each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@each_task
def test_spec_round_trip(task):
    spec = json.loads(json.dumps(task.spec()))
    again = task_from_spec(spec)
    assert again == task and type(again) is type(task) and hash(again) == hash(task)
    assert pickle.loads(pickle.dumps(task)) == task == copy.deepcopy(task)


@each_task
def test_immutable(task):
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.weight = 2.0


@each_task
def test_owns_its_metric(task):
    metric = task.new_metric()
    assert isinstance(metric, Metric) and metric is not task.new_metric()
    metric.update(task.decode(logits_of(task)), label_of(task))
    figures = metric.compute()
    assert task.primary in figures and all(isinstance(v, float) for v in figures.values())
    assert isinstance(task.higher_is_better, bool)


def test_published_defaults():
    tasks = {name: make_task(name) for name in KNOWN}
    assert {n: t.weight for n, t in tasks.items()} == {
        "semseg": 1,
        "human_parts": 2,
        "sal": 5,
        "normals": 10,
        "edge": 50,
        "depth": 1,
    }
    assert {n: t.channels for n, t in tasks.items()} == {
        "semseg": 21,
        "human_parts": 7,
        "sal": 2,
        "normals": 3,
        "edge": 1,
        "depth": 1,
    }
    assert {n: t.kind for n, t in tasks.items()} == {
        "semseg": "classes",
        "human_parts": "classes",
        "sal": "binary",
        "normals": "unit_vector",
        "edge": "binary",
        "depth": "scalar",
    }
    assert all(t.label_channels == (3 if n == "normals" else 1) for n, t in tasks.items())
    assert tasks["edge"].balance == 0.95


def test_known_names_mean_the_published_task():
    assert type(task_from_spec({"name": "sal", "kind": "binary", "ignore": 255})) is Sal
    assert type(task_from_spec({"name": "edge", "kind": "binary"})) is Edge
    assert type(task_from_spec({"name": "shadow", "kind": "binary"})) is Mask
    assert task_from_spec({"name": "semseg", "kind": "classes", "classes": ["a", "b"]}).channels == 2


def test_classes_by_number():
    assert make_task("semseg", classes=40).channels == 40
    assert make_task("material", "classes", classes=3).classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "sal", "kind": "classes"},
            r"task 'sal': kind must be 'binary' for this name, got 'classes'",
        ),
        ({"name": "shadow"}, r"task 'shadow': kind must be given"),
        ({"name": "semsag"}, r"did you mean 'semseg'\?"),
        ({"name": "shadow", "kind": "binnary"}, r"one of .*, got 'binnary' \(did you mean 'binary'\?\)"),
        ({"name": "sal", "wieght": 2}, r"option must be one of .*, got 'wieght' \(did you mean 'weight'\?\)"),
        ({"name": "material", "kind": "classes"}, r"task 'material': classes must be a list"),
        (
            {"name": "material", "kind": "classes", "classes": ["wood"]},
            r"classes must be a list of at least two",
        ),
        (
            {"name": "material", "kind": "classes", "classes": ["a", "a"]},
            r"must be a list of different names",
        ),
        ({"name": "material", "kind": "classes", "classes": 1}, r"classes must be at least 2, got 1"),
        (
            {"name": "material", "kind": "classes", "classes": ["a", 3]},
            r"classes must be a list of at least two",
        ),
        (
            {"name": "semseg", "ignore": 3},
            r"task 'semseg': ignore must be outside the class ids 0\.\.20, got 3",
        ),
        ({"name": "semseg", "ignore": "none"}, r"task 'semseg': ignore must be a finite number, got 'none'"),
        ({"name": "sal", "weight": -1}, r"task 'sal': weight must be a finite number from 0, got -1"),
        (
            {"name": "sal", "weight": float("nan")},
            r"task 'sal': weight must be a finite number from 0, got nan",
        ),
        ({"name": "sal", "weight": True}, r"task 'sal': weight must be"),
        (
            {"name": "edge", "balance": 1.5},
            r"task 'edge': balance must be a finite number from 0 to 1, got 1.5",
        ),
        ({"name": "shadow", "kind": "binary", "pos_weight": "3"}, r"pos_weight must be a finite number"),
        ({"name": "shadow", "kind": "binary", "thin": 1}, r"thin must be true or false, got 1"),
        ({"name": "heat", "kind": "scalar", "low": 2, "high": 1}, r"high must be above low \(2\), got 1"),
        ({"name": "heat", "kind": "scalar", "log": "yes"}, r"log must be true or false, got 'yes'"),
        ({"name": "heat", "kind": "scalar", "inverse": 1}, r"inverse must be true or false, got 1"),
        (
            {"name": "depth", "inverse": True},
            r"'depth': distance must be false where inverse is true, got True",
        ),
        ({"name": "depth", "score": "mae"}, r"task 'depth': score must be 'rmse' or 'abs_err', got 'mae'"),
        ({"name": "a/b", "kind": "binary"}, r"name must be letters"),
        ({"name": "", "kind": "binary"}, r"name must be letters"),
        (
            {"name": "keys", "kind": "binary"},
            r"task 'keys': name must be a name that PyTorch modules do not use",
        ),
        ({"kind": "binary"}, r"task_from_spec: spec must be a mapping with a name"),
        (["sal"], r"task_from_spec: spec must be a mapping with a name"),
        ({"name": "sal", 3: 4}, r"task_from_spec: spec must be a mapping"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ConfigError, match=message):
        task_from_spec(spec)


def test_kinds_are_listed():
    assert set(KINDS) == {"classes", "binary", "unit_vector", "scalar"}
    assert all(task_class.kind == kind for kind, task_class in KINDS.items())
