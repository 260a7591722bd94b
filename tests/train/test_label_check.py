"""What a run says about its labels, or refuses, before its first step."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dmtl.data import LabelMatrix
from dmtl.data.base import LabelledImages, Sample
from dmtl.errors import CheckpointError, ConfigError, DataError
from dmtl.tasks import make_task
from dmtl.train.label_check import LOOKED_AT, label_notes
from dmtl.train.plan import plan
from dmtl.train.setup import model_for, open_data
from dmtl.train.trainer import Trainer
from tests.train.conftest import TASKS, small_run


@pytest.fixture
def root(images, tmp_path) -> Path:
    """A copy of the data set that may suffer."""
    shutil.copytree(images, tmp_path / "data")
    return tmp_path / "data"


def run(root: Path, out: str = "run", **options):
    options["data"] = dict(labels="full") | options.get("data", {})
    return small_run(root, root.parent / out, model=dict(backbone_width=8), **options)


def told(config) -> list[str]:
    """What a trainer says about labels."""
    lines: list[str] = []
    Trainer(config, say=lines.append)
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def describe(root: Path, **changes) -> None:
    tasks = {name: {**options, **changes.pop(name, {})} for name, options in TASKS.items()}
    (root / "dataset.yaml").write_text(
        yaml.safe_dump({"name": "tiny", "tasks": tasks | changes}, sort_keys=False)
    )


def fill(root: Path, task: str, *values: int) -> None:
    """Give all labels of a task these values in turn."""
    for path in (root / task).iterdir():
        Image.fromarray(np.resize(np.array(values, np.uint8), (32, 32))).save(path)


def test_good_labels_are_not_mentioned(root):
    assert told(run(root)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "no training image of tiny has a visible label of edge. Add labels"),
        ("_mask", "label of edge; 8 files in edge/ are not read: i0_mask.png, i1_mask.png, i2_mask.png, ..."),
        (".jpg", "label of edge; 8 files in edge/ are not read: i0.jpg, i1.jpg, i2.jpg, ... "),
        ("moved", "/data/edge: no such folder (did you mean 'edges'?). Add labels"),
        ("hidden", "label of edge; data.labels hides all labels of edge"),
    ],
)
def test_a_task_without_a_visible_label_is_refused(root, damage, message):
    labels = "full"
    for path in [root / "edge" / f"i{number}.png" for number in range(8)]:
        if damage == "gone":
            path.unlink()
        elif damage == "_mask":
            path.rename(path.with_name(f"{path.stem}_mask.png"))
        elif damage == ".jpg":
            path.rename(path.with_suffix(".jpg"))
    if damage == "moved":
        (root / "edge").rename(root / "edges")
    if damage == "hidden":
        labels = str(root / "labels.csv")
        rows = "".join(f"i{number},1,0,1\n" for number in range(8))
        (root / "labels.csv").write_text(f"id,semseg,edge,heat\n{rows}")
    for act in (lambda c: open_data(c.data), plan, Trainer):
        with pytest.raises(ConfigError) as error:
            act(run(root, data=dict(labels=labels)))
        assert message in str(error.value) and "data.tasks = ['semseg', 'heat']" in str(error.value)
    assert open_data(run(root, data=dict(labels=labels, tasks=["semseg", "heat"])).data).labels.matrix.all()


@pytest.mark.parametrize("task", ["semseg", "edge", "heat"])
def test_a_task_whose_labels_are_all_ignored_is_refused(root, task):
    fill(root, task, 0 if task == "heat" else 255)
    config = run(root)
    with pytest.raises(ConfigError, match=f"every pixel of the 8 visible labels of {task} is ignored"):
        Trainer(config)
    assert not Path(config.out).exists()
    rest = [name for name in TASKS if name != task]
    assert told(run(root, data=dict(tasks=rest))) == []


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("semseg", [0, 255], "semseg: only class 0 (sky) occurs in its 8 labels, while 255 (ignored) does"),
        ("semseg", [1, 2], "semseg: class 0 (sky) occurs in none of its 8 labels"),
        ("edge", [0], "edge: class 1 (yes) occurs in none of its 8 labels"),
    ],
)
def test_classes_that_never_occur_are_named(root, task, values, message):
    fill(root, task, *values)
    (line,) = told(run(root))
    assert line.startswith(message)
    assert plan(run(root))["notes"] == [f"warning: {line}"]


def test_a_binary_task_whose_positives_are_ignored_is_refused(root):
    fill(root, "edge", 0, 255)
    for act in (Trainer, plan):
        with pytest.raises(ConfigError) as error:
            act(run(root))
        start, file, remedy = re.split(r" \(as in (.*?)\): ", str(error.value))
        assert start == "edge: class 1 (yes) occurs in none of its 8 labels, while 255 (ignored) does"
        assert Path(file) in (root / "edge").iterdir()
        assert remedy.startswith("if 255 means 'yes', write `values: {0: 0, 255: 1}` in dataset.yaml, or")


def test_the_option_that_the_error_names_helps(root):
    fill(root, "edge", 0, 255)
    describe(root, edge={"values": {0: 0, 255: 1}})
    assert told(run(root)) == []


@pytest.mark.parametrize(
    ("labels", "tasks", "expected"),
    [
        ("one-label", None, ['8 of 24 labels visible (data.labels = "one-label"); "full" uses all']),
        ("random-labels", None, ['13 of 24 labels visible (data.labels = "random-labels"); "full" uses all']),
        ("one-label", ["edge"], ['3 of 8 labels visible (data.labels = "one-label"); "full" uses all']),
        ("full", None, []),
    ],
)
def test_labels_that_a_generated_split_hides_are_counted(root, labels, tasks, expected):
    config = run(root, data=dict(labels=labels, tasks=tasks), optim=dict(batch_size=2))
    lines: list[str] = []
    Trainer(config, say=lines.append)
    assert [line for line in lines if "visible" in line] == expected
    assert [note for note in plan(config)["notes"] if "visible" in note] == expected


def test_files_that_are_not_read_are_named(root):
    for name in ("i0.tiff.bak", "i1_old.png", "i2.npz"):
        (root / "heat" / name).write_bytes(b"x")
    (line,) = told(run(root))
    assert line.startswith("3 files in heat/ are not read: i0.tiff.bak, i1_old.png, i2.npz (a label has")


def test_a_task_that_cannot_be_validated_is_named_and_trained(root):
    for number in (8, 9):
        (root / "edge" / f"i{number}.png").unlink()
    lines: list[str] = []
    Trainer(run(root, optim=dict(steps=1)), say=lines.append).fit()
    assert "warning: no validation image has a label of edge, so it is not scored" in lines


class Rare(LabelledImages):
    """Binary labels with an ignored border; only the last one has a positive pixel."""

    def __init__(self, count: int):
        super().__init__("rare", "train", {"s": make_task("s", "binary")}, [f"i{n}" for n in range(count)])

    def read(self, index, tasks=None):
        import torch

        last = index == len(self) - 1
        label = torch.tensor([[[0, 255, int(last)]]], dtype=torch.uint8)
        return Sample(self.ids[index], torch.zeros(3, 1, 3, dtype=torch.uint8), {"s": label})


def test_rare_positives_are_looked_for_before_a_task_is_refused():
    data = Rare(300)
    every = LabelMatrix.full(data.ids, ["s"])
    (line,) = label_notes(data, data, every)
    assert "labels hold only one class and 255" in line
    hidden = LabelMatrix(data.ids, ["s"], every.matrix & (np.arange(300) < 299)[:, None])
    with pytest.raises(ConfigError, match="class 1 .yes. occurs in none of its 299 labels, while 255"):
        label_notes(data, data, hidden)


class Many(LabelledImages):
    """Labels of three classes, of which the last is on one image of many; of that none is known before."""

    def __init__(self, count: int, known_from: int = 0):
        self.asked, self.known_from = 0, known_from
        tasks = {"s": make_task("s", "classes", classes=3)}
        super().__init__("many", "train", tasks, [f"i{n}" for n in range(count)])

    def read(self, index, tasks=None):
        import torch

        self.asked += 1
        label = (
            torch.tensor([[[0, 1]]], dtype=torch.uint8)
            if index >= self.known_from
            else torch.full((1, 1, 2), 255, dtype=torch.uint8)
        )
        return Sample(self.ids[index], torch.zeros(3, 1, 2, dtype=torch.uint8), {"s": label})


def test_only_so_many_labels_are_read():
    data = Many(5000)
    (line,) = label_notes(data, data, LabelMatrix.full(data.ids, ["s"]))
    assert data.asked == LOOKED_AT
    assert (
        "class 2 (class 2) occurs in none of its 64 labels (64 of 5000; `dmtl data check` reads all)" in line
    )


def test_labels_are_read_on_until_one_is_known():
    """A task is refused only if all of its labels are known to be empty."""
    data = Many(300, known_from=299)
    assert len(label_notes(data, data, LabelMatrix.full(data.ids, ["s"]))) == 1 and data.asked <= 300
    data = Many(300, known_from=300)
    with pytest.raises(ConfigError, match="every pixel of the 300 visible labels of s"):
        label_notes(data, data, LabelMatrix.full(data.ids, ["s"]))


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("semseg", "i0.png", np.full((32, 32), 3, np.uint8)),
        ("edge", "i5.npy", np.zeros((32, 32), np.float32)),
        ("heat", "i0.png", np.zeros((16, 16), np.uint16)),
        ("images", "i2.png", b"no picture"),
    ],
)
def test_a_label_that_cannot_be_read_ends_the_run_before_it_starts(root, task, name, content):
    (root / task / name).with_suffix(".png").unlink()
    if isinstance(content, bytes):
        (root / task / name).write_bytes(content)
    elif name.endswith(".npy"):
        np.save(root / task / name, content)
    else:
        Image.fromarray(content).save(root / task / name)
    with pytest.raises(DataError, match=f"{task}/{name}: "):
        Trainer(run(root))
    assert not (root.parent / "run").exists()
    assert told(run(root, data=dict(skip_corrupt=1))) == []


def test_floats_next_to_a_scale_are_reported(root):
    for path in list((root / "heat").iterdir()):
        np.save(path.with_suffix(".npy"), np.full((32, 32), 2.5, np.float32))
        path.unlink()
    (line,) = told(run(root))
    assert line.startswith("heat: 1 of its 1 labels are files of floats, which are read without `scale`")


def test_masks_drawn_in_two_ways_are_reported(root):
    for number in range(3, 8):
        Image.fromarray(np.resize(np.uint8([0, 255]), (32, 32))).save(root / "edge" / f"i{number}.png")
    (line,) = told(run(root))
    assert line.startswith(
        "edge: 5 of its 8 labels hold only one class and 255 (ignored): if 255 means 'yes'"
    )


def test_validation_images_that_are_trained_on_are_named(root):
    (root / "splits" / "val.txt").write_text("i8\ni0\ni3\n")
    for data in ({}, {"resize": True}, {"cache": False}):
        assert told(run(root, data=data)) == ["2 of 3 validation images are also training images: i0, i3"]


def test_hidden_labels_are_not_looked_at(root):
    fill(root, "edge", 255)
    Image.fromarray(np.resize(np.uint8([0, 1]), (32, 32))).save(root / "edge" / "i3.png")
    rows = "".join(f"i{number},1,{int(number == 3)},1\n" for number in range(8))
    (root / "labels.csv").write_text(f"id,semseg,edge,heat\n{rows}")
    assert told(run(root, data=dict(labels=str(root / "labels.csv")))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"semseg": {"classes": ["car", "sky", "road"]}},
            r"classes of semseg was \['sky', 'road', 'car'\], now",
        ),
        ({"heat": {"scale": 0.1}}, "scale of heat was 0.01, now 0.1"),
        ({"heat": {"log": True}}, "log of heat was False, now True"),
        ({"heat": {"inverse": True}}, "inverse of heat was False, now True"),
        ({"edge": {"values": {0: 1, 1: 0}}}, "values of edge was None, now"),
        ({"semseg": {"ignore": 77}}, "ignore of semseg was 255.0, now 77"),
    ],
)
def test_a_run_is_resumed_with_labels_of_the_same_meaning_only(root, changes, message):
    first = Trainer(run(root, optim=dict(steps=2)))
    first.out.mkdir()
    first.save(wait=True)
    assert Trainer(run(root, optim=dict(steps=2)), resume=True).step == 0
    describe(root, **changes)
    with pytest.raises(CheckpointError, match=f"belongs to another configuration: data: {message}"):
        Trainer(run(root, optim=dict(steps=2)), resume=True)


def test_tasks_of_the_model_must_mean_what_those_of_the_data_do(root):
    config = run(root)
    data = open_data(config.data)
    specs = [task.spec() for task in data.tasks.values()]
    fitting = dataclasses.replace(config.model, tasks=specs)
    model_for(dataclasses.replace(config, model=fitting), data.tasks)
    specs[0] = specs[0] | {"classes": ["car", "road", "sky"]}
    other = dataclasses.replace(config.model, tasks=specs)
    with pytest.raises(ConfigError, match="model.tasks: semseg must be as in the data"):
        model_for(dataclasses.replace(config, model=other), data.tasks)
