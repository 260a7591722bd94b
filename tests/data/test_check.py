import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data import open_dataset
from dmtl.data.check import Problem, check_dataset, picture_row, summary, what_is_wrong
from dmtl.data.folder import Folder
from dmtl.data.partial_labels import LabelMatrix
from dmtl.tasks import make_task
from tests.data.conftest import HEIGHT, TASKS, WIDTH, arrays, describe


def test_a_good_folder_has_no_problem(folder):
    assert check_dataset(Folder(folder, "train")) == []


def test_every_problem_is_listed_with_its_file(folder):
    (folder / "images" / "b.png").write_bytes(b"damaged")
    (folder / "edge" / "a.png").write_bytes(b"damaged")
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(folder / "semseg" / "c" / "d.png")
    problems = check_dataset(Folder(folder, "train"))
    assert [p.where for p in problems] == [
        str(folder / f) for f in ("edge/a.png", "images/b.png", "semseg/c/d.png")
    ]
    assert "expected JPEG or PNG" in problems[0].what and "value 9 in" in str(problems[2])


def test_labels_that_teach_nothing_are_reported(folder):
    for id in ("a", "b", "c/d"):
        Image.fromarray(arrays(0)["edge"] * 255).save(folder / "edge" / f"{id}.png")
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(folder / "cracks" / f"{id}.png")
    describe(folder, tasks={**TASKS, "mask": {"kind": "binary"}})
    assert check_dataset(Folder(folder, "train")) == [
        Problem("cracks", "every pixel of its 3 labels is ignored"),
        Problem("edge", "no pixel is 1 in any label, expected 0 and 1 (255 means ignore)"),
        Problem("mask", "no readable label at all, expected at least one"),
    ]


def test_the_same_image_twice_is_found_within_and_between_splits(folder):
    train, val = Folder(folder, "train"), Folder(folder, "val")
    assert [str(p) for p in check_dataset(val, [train])] == [
        "a: the same image as train: a, expected it once",
        "depth: no readable label at all, expected at least one",
    ]
    Image.fromarray(arrays(0)["images"]).save(folder / "images" / "b.png")
    assert [str(p) for p in check_dataset(train)] == ["b: the same image as train: a, expected it once"]


@pytest.mark.parametrize(
    "task, label, message",
    [
        (make_task("edge"), torch.zeros(1, 4, 4), "torch.float32"),
        (
            make_task("edge"),
            torch.zeros(1, 4, 5, dtype=torch.uint8),
            "[1, 4, 5], expected torch.uint8 [1, 4, 4]",
        ),
        (make_task("edge"), torch.full((1, 4, 4), 3, dtype=torch.uint8), "value 3, expected 0 to 1"),
        (make_task("normals"), torch.full((3, 4, 4), 0.5), "vectors of length 0.8660 to 0.8660"),
        (
            make_task("semseg", classes=3),
            torch.full((1, 4, 4), 3, dtype=torch.uint8),
            "value 3, expected 0 to 2",
        ),
        (make_task("depth"), torch.full((1, 4, 4), 255.0), None),
        (make_task("normals"), torch.full((3, 4, 4), 255.0), None),
    ],
)
def test_what_is_wrong(task, label, message):
    found = what_is_wrong(label, task, (4, 4))
    assert found is None if message is None else message in found


def test_summary_counts_existing_and_visible_labels(folder):
    data = Folder(folder, "train")
    labels = LabelMatrix(data.ids, list(TASKS), np.eye(3, 5))
    facts = summary(data, labels)
    assert (facts["name"], facts["split"], facts["images"]) == ("small", "train", 3)
    assert facts["tasks"]["semseg"] == {"kind": "classes", "exist": 2, "visible": 1}
    assert facts["tasks"]["depth"] == {"kind": "scalar", "exist": 2, "visible": 0}
    assert facts["labels_per_image"] == {"1": 3}
    assert summary(data)["labels_per_image"] == {"4": 2, "5": 1}


def test_picture_row(folder):
    data = Folder(folder, "train")
    row = picture_row(data.read(0), data.tasks)
    assert row.shape == (HEIGHT, 6 * WIDTH, 3) and row.dtype == np.uint8
    assert (row[:, :WIDTH] == arrays(0)["images"]).all()
    gap = 1 + list(data.tasks).index("depth")
    assert (row[:, gap * WIDTH : (gap + 1) * WIDTH] == 128).all()


def test_scenes_pass_the_check():
    scenes = open_dataset("scenes", "val", count=4, size=(48, 64))
    assert [p for p in check_dataset(scenes) if p.where != "human_parts"] == []
