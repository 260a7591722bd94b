import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data import open_dataset
from dmtl.data.folder.check import Problem, check_dataset, examine, summary
from dmtl.data.folder.dataset import Folder
from dmtl.data.parallel import in_parallel
from dmtl.errors import WorkerError
from dmtl.tasks import make_task
from tests.data.conftest import HEIGHT, TASKS, WIDTH, arrays, describe
from tests.data.tiny import Tiny, write_tiny


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
    assert "not an image" in problems[0].what and "value 9 in" in str(problems[2])


def killed(item):
    """What a process reads when the system kills it."""
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_process_that_dies_is_one_line(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    assert list(in_parallel(killed, [0, 1], workers=1)) == [0, 1]
    with pytest.raises(WorkerError, match="a process that reads data died .* or set --workers to 0"):
        list(in_parallel(killed, range(9), workers=2))


def test_labels_that_teach_nothing_are_reported(folder):
    for id in ("a", "b", "c/d"):
        Image.fromarray(arrays(0)["edge"] * 255).save(folder / "edge" / f"{id}.png")
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(folder / "cracks" / f"{id}.png")
    describe(folder, tasks={**TASKS, "mask": {"kind": "binary"}})
    assert check_dataset(Folder(folder, "train")) == [
        Problem("label", "cracks", "every pixel of its 3 labels is ignored"),
        Problem(
            "label",
            "edge",
            "class 1 (yes) occurs in none of its 3 labels, while 255 (ignored) does "
            f"(as in {folder / 'edge' / 'a.png'}): "
            "if 255 means 'yes', write `values: {0: 0, 255: 1}` in dataset.yaml",
        ),
        Problem("label", "mask", "no readable label at all, expected at least one"),
    ]


def test_the_same_image_twice_is_found_within_and_between_splits(folder):
    Image.fromarray(arrays(1)["images"]).save(folder / "images" / "a.png")
    (folder / "splits" / "val.txt").write_text("b\n")
    (folder / "splits" / "train.txt").write_text("a\nc/d\n")
    seen = {}
    assert check_dataset(Folder(folder, "train"), seen=seen) == []
    assert check_dataset(Folder(folder, "val"), seen=seen) == [
        Problem("image", "b", "duplicate of train: a"),
        Problem("label", "semseg", "no readable label at all, expected at least one"),
    ]
    (folder / "splits" / "train.txt").write_text("a\nb\n")
    assert [str(p) for p in check_dataset(Folder(folder, "train"))] == ["b: duplicate of train: a"]


def test_an_id_in_two_splits_is_found(folder):
    seen = {}
    check_dataset(Folder(folder, "train"), seen=seen)
    found = check_dataset(Folder(folder, "val"), seen=seen)
    assert found[0] == Problem("split", "a", "is in both train and val")


def test_vectors_of_files_are_measured_before_reading_makes_them_unit_vectors(folder):
    """Share and worst of each file, in codes and in numbers; unknown ones do not count."""
    codes = arrays(0)["normals"]
    codes[0], codes[1, :16] = 0, 128  # unknown
    codes[2, :12] = (128, 128, 230)  # length 0.80 in 12 of 720
    Image.fromarray(codes).save(folder / "normals" / "a.png")
    (folder / "normals" / "b.png").unlink()
    numbers = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    numbers[3, :10], numbers[4, :1] = (0, 0.6, 0.8), (0, 1.2, 0)
    np.save(folder / "normals" / "b.npy", numbers)
    found = {p.where: p.what for p in check_dataset(Folder(folder, "train")) if p.kind == "vector"}
    middle = "vectors have another length, the worst"
    assert found == {
        "a (normals)": f"1.67% of its 720 {middle} 0.8039, expected 1 within 0.01",
        "b (normals)": f"9.09% of its 11 {middle} 1.2000, expected 1 within 0.001",
    }


def test_workers_find_the_same(folder):
    (folder / "images" / "b.png").write_bytes(b"damaged")
    Image.fromarray(arrays(2)["images"]).save(folder / "images" / "a.png")
    data = Folder(folder, "train")
    found = check_dataset(data, workers=2)
    assert found == check_dataset(data) and len(found) == 2


def test_images_that_look_different_from_their_pixels_are_listed(folder):
    """No fault: labels fit what is shown."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(arrays(0)["images"]).save(folder / "images/a.png", exif=exif)
    Image.fromarray(np.dstack([arrays(1)["images"], arrays(1)["edge"] * 9])).save(folder / "images/b.png")
    problems = check_dataset(Folder(folder, "train"))
    assert [(p.kind, p.where, p.is_fault) for p in problems] == [
        ("shown", str(folder / f"images/{id}.png"), False) for id in "ab"
    ]
    assert "orientation tag 3" in problems[0].what and "transparent" in problems[1].what


def test_lengths_of_odd_numbers():
    """What is not finite, and zeros, are unknown; what is too long to be squared is not."""
    numbers = np.zeros((HEIGHT, WIDTH, 3), np.float64)
    numbers[0, :4] = [(np.nan, 0, 1), (np.inf, 0, 0), (1e30, 0, 0), (0, -1, 0)]
    normals = make_task("normals")
    assert normals.stored_problem(numbers) == (
        "50.00% of its 2 vectors have another length, the worst inf, expected 1 within 0.001"
    )
    assert normals.stored_problem(numbers[1:]) is None


def test_boundaries_are_read_too(folder):
    describe(folder, boundaries="contours")
    for id in ("a", "b", "c/d"):
        path = folder / "contours" / f"{id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH), id == "b", np.uint8) * 7).save(path)
    assert [str(p) for p in check_dataset(Folder(folder, "train"))] == [
        f"{folder}/contours/b.png: value 7, expected 0 and 1 (a boundary)"
    ]


def test_a_distribution_is_checked_as_it_is(tmp_path):
    source = write_tiny(tmp_path / "tiny")
    train = Tiny(source, "train")
    assert check_dataset(train) == []
    damaged = source / "jpg" / "train-003.JPG"
    damaged.write_bytes(damaged.read_bytes()[:200])
    codes = np.full((24, 40, 3), (128, 128, 200), np.uint8)[:18, :26]
    Image.fromarray(codes).save(source / "normals" / "train-005.png")
    problems = check_dataset(train)
    assert [(p.kind, p.where) for p in problems] == [
        ("file", str(damaged)),
        ("vector", "train/005 (normals)"),
    ]
    assert problems[1].what.startswith("100.00% of its 468 vectors")


@pytest.mark.parametrize(
    ("task", "label", "message"),
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
    found = examine(label, task, (4, 4))
    assert found is None if message is None else message in found


def test_summary_counts_labels(folder):
    facts = summary(Folder(folder, "train"))
    assert (facts["name"], facts["split"], facts["images"]) == ("small", "train", 3)
    assert facts["tasks"]["semseg"] == {"kind": "classes", "exist": 2}
    assert facts["tasks"]["depth"] == {"kind": "scalar", "exist": 2}
    assert facts["labels_per_image"] == {"4": 2, "5": 1}


def test_scenes_pass_the_check():
    scenes = open_dataset("scenes", "val", count=4, size=(48, 64))
    assert [p for p in check_dataset(scenes) if p.where != "human_parts"] == []
