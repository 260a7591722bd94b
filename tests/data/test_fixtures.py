"""Fixtures: the files of the distributions and what is in them, the same from the same seed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmtl.errors import DataError
from tests.data import expected
from tests.fixtures import FIXTURES, write_fixture
from tests.fixtures.__main__ import main

SIZE = (40, 56)
ARRAYS = [
    name for name in FIXTURES if name == "nyud-13" or (name.startswith("cityscapes-") and name[11] in "71")
]


def files(root: Path) -> dict[str, str]:
    """Name -> hash of the content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", FIXTURES)
def test_same_arguments_write_the_same_files(tmp_path, name):
    first, again, other = (
        files(write_fixture(name, tmp_path / folder, 2, 1, SIZE, seed))
        for folder, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again and first.keys() == other.keys()
    assert sum(first[file] != other[file] for file in first) > len(first) / 2


def test_names_of_files(tmp_path):
    def names(name):
        return set(files(write_fixture(name, tmp_path / name, 2, 1, SIZE)))

    rows = ("train/{}/0.npy", "train/{}/1.npy", "val/{}/0.npy")
    for name, folders in {
        "nyud-13": ("image", "label", "depth", "normal"),
        "cityscapes-7": ("image", "label_7", "depth"),
        "cityscapes-7-label": ("image", "label", "depth"),
        "cityscapes-19": ("image", "label_19", "depth"),
        "cityscapes-19-label": ("image", "label", "depth"),
    }.items():
        assert names(name) == {row.format(folder) for row in rows for folder in folders}
    lists = {"gt_sets/train.txt", "gt_sets/val.txt"}
    for name, kinds in {
        "nyud-40": ("images/{}.png", "segmentation/{}.png", "edge/{}.png", "normals/{}.png", "depth/{}.npy"),
        "nyud-40-mt": (
            "images/{}.jpg",
            "segmentation/{}.png",
            "edge/{}.npy",
            "normals/{}.npy",
            "depth/{}.npy",
        ),
    }.items():
        assert names(name) == lists | {kind.format(id) for kind in kinds for id in ("0001", "0002", "0003")}
        assert (tmp_path / name / "gt_sets" / "train.txt").read_text() == "0001\n0002\n"
    train = ("train/aachen/aachen_000000_000019", "train/bochum/bochum_000001_000019")
    val, test = "val/frankfurt/frankfurt_000000_000019", "test/berlin/berlin_000000_000019"
    assert names("cityscapes-raw") == {
        *(f"leftImg8bit/{place}_leftImg8bit.png" for place in (*train, val, test)),
        *(f"gtFine/{place}_gtFine_labelIds.png" for place in (*train, val)),
        *(f"disparity/{place}_disparity.png" for place in (*train, val)),
    }


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_hold_what_the_distribution_says(tmp_path, name):
    root = write_fixture(name, tmp_path / "f", 1, 1, SIZE) / "train"
    arrays = {path.parent.name: np.load(path) for path in root.rglob("0.npy")}
    image, depth = arrays.pop("image"), arrays.pop("depth")
    assert image.shape == (*SIZE, 3) and 0 <= image.min() < 0.3 and 0.6 < image.max() <= 1
    assert depth.shape == (*SIZE, 1) and depth.min() == 0 < np.median(depth)
    if "normal" in arrays:
        length = np.linalg.norm(arrays.pop("normal").astype(float), axis=2)
        assert set(np.round(length, 5).ravel()) == {0, 1}
    else:
        assert depth.max() <= 0.4922
    (label,) = arrays.values()
    last = {"nyud-13": 12, "cityscapes-7": 6, "cityscapes-7-label": 6}.get(name, 18)
    assert label.shape == SIZE and label.min() == -1 and 0 < label.max() <= last
    assert (label == np.round(label)).all()


def test_pictures_hold_what_the_distribution_says(tmp_path):
    def read(path):
        return np.array(Image.open(path))

    old = write_fixture("nyud-40-mt", tmp_path / "old", 1, 1, SIZE)
    new = write_fixture("nyud-40", tmp_path / "new", 1, 1, SIZE)
    edge, normals = read(new / "edge" / "0001.png"), read(new / "normals" / "0001.png")
    assert set(np.unique(edge)) == {0, 255} and normals.shape == (*SIZE, 3) and normals.dtype == np.uint8
    np.testing.assert_array_equal(np.load(old / "edge" / "0001.npy"), edge / 255)
    np.testing.assert_allclose(np.load(old / "normals" / "0001.npy"), normals / 127.5 - 1, atol=0.004)
    segmentation = read(new / "segmentation" / "0001.png")
    assert segmentation.dtype == np.uint8 and segmentation.min() == 0 and segmentation.max() <= 40
    raw = write_fixture("cityscapes-raw", tmp_path / "raw", 1, 1, SIZE)
    (ids,) = (raw / "gtFine" / "train").rglob("*_labelIds.png")
    (disparity,) = (raw / "disparity" / "train").rglob("*.png")
    assert set(np.unique(read(ids))) <= {3, 7, 8, 11, 12, 13, 17, 20, 21, 22, 23, 24, 26, 27, 33}
    assert Image.open(disparity).mode == "I;16" and read(disparity).min() == 0


def test_a_tenth_is_unknown_and_each_label_lacks_other_pixels():
    masks = [expected.known("nyud-13", task, "train", 0, (400, 400), 0) for task in expected.LAYERS]
    assert all(0.07 < 1 - mask.mean() < 0.13 for mask in masks)
    assert (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()


def test_sizes_are_those_of_the_distributions():
    assert {name: size for name, (_, size) in FIXTURES.items()} == {
        "pascal-context": (375, 500),
        "nyud-13": (288, 384),
        "nyud-40": (425, 560),
        "nyud-40-mt": (480, 640),
        "cityscapes-7": (128, 256),
        "cityscapes-7-label": (256, 512),
        "cityscapes-19": (128, 256),
        "cityscapes-19-label": (256, 512),
        "cityscapes-raw": (256, 512),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "nyud13"}, "unknown fixture 'nyud13', did you mean 'nyud-13'"),
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"val": -1}, "val must be at least 1, got -1"),
        ({"size": (40, 8)}, "size must be at least 16, got 8"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        write_fixture(**{"format": "nyud-13", "folder": tmp_path / "f", **arguments})
    assert not (tmp_path / "f").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine").write_text("here")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(DataError, match="exists already, expected a new or an empty folder"):
            write_fixture("nyud-13", place, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert write_fixture("cityscapes-7", tmp_path / "empty", 1, 1, SIZE) == tmp_path / "empty"


def test_command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["nyud-40", "tiny", "--train", "2", "--val", "1", "--size", "40", "56"]
    assert main(words) == 0
    assert capsys.readouterr().out == "wrote tiny (nyud-40: 2 training and 1 validation images)\n"
    assert files(tmp_path / "tiny") == files(write_fixture("nyud-40", tmp_path / "same", 2, 1, SIZE))
    assert main(words) == 2
    assert "tiny: exists already" in capsys.readouterr().err
