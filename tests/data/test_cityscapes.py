"""Cityscapes as distributed: arrays under every name and in both sizes, and the raw release."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.benchmarks.cityscapes import CLASSES_19, Cityscapes7, Cityscapes19, CityscapesRaw
from dmtl.data.scenes import Scenes
from dmtl.errors import DataError
from tests.data import expected
from tests.fixtures import write_fixture

SIZE, SEED = (40, 80), 5
READERS = {
    "cityscapes-7": Cityscapes7,
    "cityscapes-7-label": Cityscapes7,
    "cityscapes-19": Cityscapes19,
    "cityscapes-19-label": Cityscapes19,
    "cityscapes-raw": CityscapesRaw,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    top = tmp_path_factory.mktemp("cityscapes")
    return {name: write_fixture(name, top / name, 3, 2, SIZE, SEED) for name in READERS}


@pytest.fixture
def copy(written, tmp_path):
    """`copy(name)` is a fixture of one's own."""
    return lambda name: shutil.copytree(written[name], tmp_path / name)


def assert_as_rendered(dataset, name, split, index, size=SIZE):
    """Ids exactly; inverse depth to half a step of its 16-bit code."""
    sample = dataset.read(index)
    truth = expected.labels(name, expected.cast(split, index, size, SEED))
    half = 0.5 / 256 if name == "cityscapes-raw" else 0.5 / 65535
    assert list(sample.labels) == ["semseg", "depth"]
    for task, label in sample.labels.items():
        known = expected.known(name, task, split, index, size, SEED)
        assert (label.numpy()[:, ~known] == dataset.tasks[task].ignore).all() and (~known).any()
        atol = 0 if task == "semseg" else half * 1.01
        np.testing.assert_allclose(label.numpy()[:, known], truth[task][:, known], atol=atol, rtol=0)


@pytest.mark.parametrize("name", READERS)
def test_labels_are_those_of_the_scenes(written, name):
    for split, count in (("train", 3), ("val", 2)):
        dataset = READERS[name](written[name], split)
        assert len(dataset) == count
        for index in range(count):
            # The raw release is listed by city: the second image of the first city is scene 2.
            scene = [0, 2, 1][index] if (name, split) == ("cityscapes-raw", "train") else index
            found = dataset.read(index).image
            assert torch.equal(found, Scenes(split, 3, SIZE, seed=SEED).read(scene).image)
            if scene == index:
                assert_as_rendered(dataset, name, split, index)


@pytest.mark.parametrize(
    ("name", "size"), [("cityscapes-7", (128, 256)), ("cityscapes-19-label", (256, 512))]
)
def test_both_sizes(tmp_path, name, size):
    root = write_fixture(name, tmp_path / name, 1, 1, seed=SEED)
    assert READERS[name](root, "val").read(0).size == size
    assert_as_rendered(READERS[name](root, "val"), name, "val", 0, size)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8"])
def test_any_dtype_and_shape(copy, dtype):
    root = copy("cityscapes-19")
    label, depth = root / "val" / "label_19" / "0.npy", root / "val" / "depth" / "0.npy"
    np.save(label, np.load(label).astype(dtype)[..., None])
    np.save(depth, np.load(depth).astype("float64").reshape(SIZE))
    assert_as_rendered(Cityscapes19(root, "val"), "cityscapes-19", "val", 0)


def test_tasks_and_how_they_are_scored(written):
    for name, reader in READERS.items():
        dataset = reader(written[name], "val")
        semseg, depth = dataset.tasks.values()
        assert semseg.classes == CLASSES_19 or (name.startswith("cityscapes-7") and semseg.channels == 7)
        assert depth.inverse and not depth.distance and depth.primary == "abs_err"
        assert dataset.evaluation == {}
    assert len(set(CLASSES_19)) == 19 and CLASSES_19[0] == "road" and CLASSES_19[18] == "bicycle"


def test_label_holds_7_classes_unless_the_reader_is_told_otherwise(written):
    root = written["cityscapes-19-label"]
    with pytest.raises(DataError, match=r"label/0\.npy: value .* class ids 0 to 6, .*format cityscapes-19"):
        Cityscapes7(root, "val").read(0)
    assert Cityscapes7(root, "val").read(0, ["depth"]).labels.keys() == {"depth"}
    assert_as_rendered(Cityscapes19(root, "val"), "cityscapes-19", "val", 0)


def test_labels_of_both_numbers_of_classes_may_stand_side_by_side(copy, written):
    root = copy("cityscapes-7")
    for split in ("train", "val"):
        shutil.copytree(written["cityscapes-19"] / split / "label_19", root / split / "label_19")
    assert_as_rendered(Cityscapes7(root, "val"), "cityscapes-7", "val", 0)
    assert_as_rendered(Cityscapes19(root, "val"), "cityscapes-19", "val", 0)
    with pytest.raises(DataError, match=r"train/label: cannot be read"):
        Cityscapes19(written["cityscapes-7"], "train")


@pytest.mark.parametrize(
    ("folder", "values", "message"),
    [
        ("label_7", np.full(SIZE, -2), r"value -2 in 3200 pixels"),
        ("depth", np.full(SIZE, -0.1), r"value -0\.1 in 3200 pixels, expected positive numbers"),
        ("depth", np.ones((*SIZE, 3)), r"expected one number per pixel"),
        ("image", np.ones((3, *SIZE)), r"expected an image \[H, W, 3\]"),
    ],
)
def test_bad_arrays_are_named(copy, folder, values, message):
    root = copy("cityscapes-7")
    np.save(root / "val" / folder / "0.npy", values)
    with pytest.raises(DataError, match=rf"val/{folder}/0\.npy: .*{message}"):
        Cityscapes7(root, "val").read(0)


# ---- the raw release


def place(root, kind, ending):
    return root / kind / "val" / "frankfurt" / f"frankfurt_000000_000019_{ending}.png"


def test_ids_go_by_city_and_the_test_split_has_no_labels(written):
    root = written["cityscapes-raw"]
    assert CityscapesRaw(root, "train").ids == [
        "aachen/aachen_000000_000019",
        "aachen/aachen_000002_000019",
        "bochum/bochum_000001_000019",
    ]
    test = CityscapesRaw(root, "test")
    assert test.ids == ["berlin/berlin_000000_000019", "berlin/berlin_000001_000019"]
    assert test.read(0).labels == {} and not test.available().matrix.any()
    assert CityscapesRaw(root, "val").available().matrix.all()
    assert CityscapesRaw(root, "val").image_file(1).name == "lindau_000001_000019_leftImg8bit.png"


def test_every_id_of_the_release(copy):
    """The public table of the release: id, and the id that is trained on (255: none)."""
    table = {
        7: 0,
        8: 1,
        11: 2,
        12: 3,
        13: 4,
        17: 5,
        19: 6,
        20: 7,
        21: 8,
        22: 9,
        23: 10,
        24: 11,
        25: 12,
        26: 13,
    }
    table |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    stored = np.full(SIZE, 255, np.uint8)
    stored[0, :34] = range(34)
    root = copy("cityscapes-raw")
    Image.fromarray(stored).save(place(root, "gtFine", "gtFine_labelIds"))
    label = CityscapesRaw(root, "val").read(0).labels["semseg"][0]
    assert label[0, :34].tolist() == [table.get(id, 255) for id in range(34)] and (label[1:] == 255).all()


def test_disparity_codes(copy):
    stored = np.full(SIZE, 513, np.uint16)
    stored[0, :4] = 0, 1, 2, 65535
    root = copy("cityscapes-raw")
    Image.fromarray(stored).save(place(root, "disparity", "disparity"))
    dataset = CityscapesRaw(root, "val")
    label = dataset.read(0).labels["depth"]
    assert label[0, 0, :5].tolist() == [255, 0.0, 1 / 256, 65534 / 256, 2.0]
    assert dataset.tasks["depth"].valid(label)[0, 0, :5].tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("kind", "ending", "values", "message"),
    [
        (
            "gtFine",
            "gtFine_labelIds",
            np.full(SIZE, 34, np.uint8),
            r"up to 34, expected ids of labels 0 to 33",
        ),
        ("gtFine", "gtFine_labelIds", np.full(SIZE, 7, np.uint16), r"uint16 values"),
        ("disparity", "disparity", np.full(SIZE, 7, np.uint8), r"expected a 16-bit grey picture"),
        ("disparity", "disparity", np.zeros((*SIZE, 3), np.uint8), r"expected a 16-bit grey picture"),
    ],
)
def test_bad_pictures_are_named(copy, kind, ending, values, message):
    root = copy("cityscapes-raw")
    Image.fromarray(values).save(place(root, kind, ending))
    with pytest.raises(DataError, match=rf"frankfurt_000000_000019_{ending}\.png: .*{message}"):
        CityscapesRaw(root, "val").read(0)


def test_missing_and_strange_files(copy, tmp_path):
    root = copy("cityscapes-raw")
    (root / "leftImg8bit" / "val" / "readme.txt").touch()
    (root / "leftImg8bit" / "val" / "lindau" / "other.png").touch()
    assert len(CityscapesRaw(root, "val")) == 2
    place(root, "disparity", "disparity").unlink()
    with pytest.raises(DataError, match=r"disparity/val: no label for 1 of 2 images, expected frankfurt/"):
        CityscapesRaw(root, "val")
    assert len(CityscapesRaw(root, "val", ["semseg"])) == 2
    shutil.rmtree(root / "gtFine" / "val")
    with pytest.raises(DataError, match=r"gtFine/val: cannot be read"):
        CityscapesRaw(root, "val", ["semseg"])
    shutil.move(root / "leftImg8bit" / "val" / "lindau", tmp_path / "elsewhere")
    (root / "leftImg8bit" / "val" / "lindau").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"val/lindau: a link to .*elsewhere"):
        CityscapesRaw(root, "val", [])
    shutil.rmtree(root / "leftImg8bit" / "val")
    (root / "leftImg8bit" / "val").mkdir()
    with pytest.raises(DataError, match=r"leftImg8bit/val: no images, expected CITY/"):
        CityscapesRaw(root, "val")
