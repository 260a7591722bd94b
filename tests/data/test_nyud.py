"""NYUD-v2 as distributed: every label as the scenes have it, whatever dtype and ending the files have."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.benchmarks.nyud import CLASSES_13, CLASSES_40, Nyud13, Nyud40
from dmtl.errors import DataError
from tests.data import expected
from tests.fixtures import write_fixture

SIZE, SEED = (40, 56), 5
COUNTS = {"train": 11, "val": 2}  # more than ten: rows are numbers, not words


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    top = tmp_path_factory.mktemp("nyud")
    return {
        name: write_fixture(name, top / name, *COUNTS.values(), SIZE, SEED)
        for name in ("nyud-13", "nyud-40", "nyud-40-mt")
    }


@pytest.fixture
def arrays(written, tmp_path):
    """A copy of nyud-13 of its own."""
    return shutil.copytree(written["nyud-13"], tmp_path / "copy")


@pytest.fixture
def pictures(written, tmp_path):
    """A copy of nyud-40 of its own."""
    return shutil.copytree(written["nyud-40"], tmp_path / "copy")


def assert_as_rendered(dataset, format, split, index):
    """Ids and numbers exactly, vectors to float32 or, where they are coded in 8 bits, to half a step."""
    found = expected.cast(split, index, SIZE, SEED)
    sample, truth = dataset.read(index), expected.labels(format, found)
    assert sample.labels.keys() == truth.keys()
    for task, label in sample.labels.items():
        known = expected.known(format, task, split, index, SIZE, SEED)
        label = label.numpy()
        assert (label[:, ~known] == dataset.tasks[task].ignore).all()
        if task != "normals":
            np.testing.assert_array_equal(label[:, known], truth[task][:, known])
            continue
        np.testing.assert_allclose(np.linalg.norm(label, axis=0)[known], 1, atol=1e-6)
        step = 2 / 255 if format == "nyud-40" else 0
        np.testing.assert_allclose(label[:, known], truth[task][:, known], atol=1e-6 + step)


@pytest.mark.parametrize("name", ["nyud-13", "nyud-40", "nyud-40-mt"])
def test_labels_are_those_of_the_scenes(written, name):
    reader = Nyud13 if name == "nyud-13" else Nyud40
    for split, count in COUNTS.items():
        dataset = reader(written[name], split)
        assert len(dataset) == count
        for index in (0, count // 2, count - 1):
            assert_as_rendered(dataset, name, split, index)


def test_8_bit_normals_are_the_coded_vectors(written):
    stored = np.array(Image.open(written["nyud-40"] / "normals" / "0001.png")).astype(float)
    vector = stored * 2 / 255 - 1
    vector /= np.linalg.norm(vector, axis=2, keepdims=True)
    label = Nyud40(written["nyud-40"], "train").read(0).labels["normals"].numpy()
    np.testing.assert_allclose(label.transpose(1, 2, 0), vector, atol=1e-6)


def test_images_are_those_of_the_scenes(written):
    from dmtl.data.scenes import Scenes

    image = Scenes("val", 2, SIZE, seed=SEED).read(1).image
    assert torch.equal(Nyud13(written["nyud-13"], "val").read(1).image, image)
    assert torch.equal(Nyud40(written["nyud-40"], "val").read(1).image, image)
    jpeg = Nyud40(written["nyud-40-mt"], "val").read(1).image
    assert jpeg.dtype == torch.uint8 and (jpeg.int() - image.int()).abs().float().mean() < 8


def test_rows_are_numbers_and_ids_differ_between_splits(written):
    train, val = (Nyud13(written["nyud-13"], split) for split in COUNTS)
    assert train.ids == [f"train/{row}" for row in range(11)] and val.ids == ["val/0", "val/1"]
    assert Nyud40(written["nyud-40"], "val").ids == ["0012", "0013"]


@pytest.mark.parametrize("label", ["float32", "float64", "int64", "int8", "int16"])
@pytest.mark.parametrize("number", ["float32", "float64"])
@pytest.mark.parametrize("channel", [True, False])
def test_any_dtype_and_shape(arrays, label, number, channel):
    for folder, dtype in (("label", label), ("depth", number), ("normal", number), ("image", number)):
        path = arrays / "val" / folder / "1.npy"
        values = np.load(path).astype(dtype)
        if folder in ("label", "depth"):
            values = values.reshape(*SIZE, 1) if channel else values.reshape(SIZE)
        np.save(path, values)
    assert_as_rendered(Nyud13(arrays, "val"), "nyud-13", "val", 1)


def test_whole_metres_and_axes_may_be_integers(arrays):
    depth, normals = np.full(SIZE, 3, np.int32), np.zeros((*SIZE, 3), np.int8)
    depth[:4], normals[..., 2], normals[:4] = 0, 1, 0
    np.save(arrays / "val" / "depth" / "0.npy", depth)
    np.save(arrays / "val" / "normal" / "0.npy", normals)
    labels = Nyud13(arrays, "val").read(0).labels
    assert (labels["depth"][:, :4] == 255).all() and (labels["depth"][:, 4:] == 3).all()
    assert (labels["normals"][:, :4] == 255).all() and (labels["normals"][2, 4:] == 1).all()


def test_shortened_vectors_become_unit_vectors(arrays):
    path = arrays / "val" / "normal" / "0.npy"
    before = Nyud13(arrays, "val").read(0).labels["normals"]
    np.save(path, np.load(path) * 0.3)
    torch.testing.assert_close(Nyud13(arrays, "val").read(0).labels["normals"], before, atol=1e-6, rtol=0)


def test_either_ending_and_either_code_of_edges(written, pictures):
    for id in ("0012", "0013"):
        edge = pictures / "edge" / f"{id}.png"
        values = np.array(Image.open(edge))
        edge.unlink()
        np.save(edge.with_suffix(".npy"), values > 0 if id == "0012" else values.astype(np.float64))
        segmentation = pictures / "segmentation" / f"{id}.png"
        np.save(segmentation.with_suffix(".npy"), np.array(Image.open(segmentation)).astype(np.int32))
        segmentation.unlink()
    (pictures / "images" / "0012.png").unlink()
    shutil.copy(written["nyud-40-mt"] / "images" / "0012.jpg", pictures / "images")
    dataset = Nyud40(pictures, "val")
    assert [dataset.image_file(i).name for i in (0, 1)] == ["0012.jpg", "0013.png"]
    for index in (0, 1):
        assert_as_rendered(dataset, "nyud-40", "val", index)


def test_tasks_and_how_they_are_scored(written):
    arrays, pictures = Nyud13(written["nyud-13"], "val"), Nyud40(written["nyud-40"], "val")
    assert list(arrays.tasks) == ["semseg", "depth", "normals"]
    assert list(pictures.tasks) == ["semseg", "depth", "normals", "edge"]
    assert arrays.tasks["semseg"].classes == CLASSES_13 and len(set(CLASSES_13)) == 13
    assert pictures.tasks["semseg"].classes == CLASSES_40 and len(set(CLASSES_40)) == 40
    assert arrays.tasks["depth"].primary == "abs_err" and pictures.tasks["depth"].primary == "rmse"
    assert arrays.tasks["depth"].distance and pictures.tasks["depth"].distance
    assert arrays.evaluation == {} and pictures.evaluation == {"frame": [448, 576], "max_dist": 0.011}
    assert list(Nyud13(written["nyud-13"], "val", ["normals"]).read(0).labels) == ["normals"]


def test_only_images_that_fit_have_the_published_frame(tmp_path):
    for size, evaluation in (
        ((448, 576), {"frame": [448, 576], "max_dist": 0.011}),
        ((449, 20), {"max_dist": 0.011}),
    ):
        root = write_fixture("nyud-40-mt", tmp_path / str(size), 1, 1, size)
        assert Nyud40(root, "val").evaluation == evaluation


def test_boundaries_are_the_outline_of_the_edge_picture(written):
    for name in ("nyud-40", "nyud-40-mt"):
        dataset = Nyud40(written[name], "val")
        edge = expected.labels("nyud-40", expected.cast("val", 1, SIZE, SEED))["edge"][0]
        outline = np.zeros(SIZE, bool)
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                down, right = min(y + 1, SIZE[0] - 1), min(x + 1, SIZE[1] - 1)
                outline[y, x] = edge[y, x] != edge[y, right] or edge[y, x] != edge[down, x]
                outline[y, x] |= edge[y, x] != edge[down, right]
        found = dataset.boundaries(1)
        assert found.dtype == torch.bool and np.array_equal(found.numpy(), outline)
    assert Nyud40(written["nyud-40"], "val", ["depth"]).boundaries(0) is None
    assert Nyud13(written["nyud-13"], "val").boundaries(0) is None


def test_readers_pickle(written):
    for dataset in (Nyud13(written["nyud-13"], "val"), Nyud40(written["nyud-40"], "val")):
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again.read(1).labels["depth"], dataset.read(1).labels["depth"])


def test_labels_of_other_tasks_are_not_read(arrays):
    (arrays / "val" / "depth" / "0.npy").write_bytes(b"damaged")
    assert list(Nyud13(arrays, "val").read(0, ["semseg"]).labels) == ["semseg"]
    with pytest.raises(DataError, match=r"depth/0\.npy: not a readable array"):
        Nyud13(arrays, "val").read(0)


def test_gaps_and_strange_names_are_refused(arrays):
    image = arrays / "val" / "image"
    (image / ".hidden.npy").touch()
    assert len(Nyud13(arrays, "val")) == 2
    (arrays / "val" / "depth" / "2.npy").touch()
    with pytest.raises(DataError, match=r"val/depth: 3 labels, .* 2 images; .* is 2\.npy"):
        Nyud13(arrays, "val")
    assert len(Nyud13(arrays, "val", ["normals"])) == 2
    (arrays / "val" / "label" / "0.npy").unlink()
    with pytest.raises(DataError, match=r"val/label: 1 labels, .* is 0\.npy"):
        Nyud13(arrays, "val")
    (image / "0.npy").rename(image / "00.npy")
    with pytest.raises(DataError, match=r"image/00\.npy: not a number, expected files named 0\.npy"):
        Nyud13(arrays, "val")
    (image / "00.npy").unlink()
    with pytest.raises(DataError, match=r"val/image: no 0\.npy among 1 files, .* without a gap"):
        Nyud13(arrays, "val")
    (arrays / "train" / "image" / "7.npy").unlink()
    with pytest.raises(DataError, match=r"train/image: no 7\.npy among 10 files"):
        Nyud13(arrays, "train")
    shutil.rmtree(arrays / "train" / "image")
    with pytest.raises(DataError, match=r"train/image: cannot be read \(No such file"):
        Nyud13(arrays, "train")
    with pytest.raises(DataError, match="split must be one of train, val, got 'test'"):
        Nyud13(arrays, "test")


@pytest.mark.parametrize(
    ("folder", "values", "message"),
    [
        ("label", np.full(SIZE, 13), r"value 13 in 2240 pixels, expected class ids 0 to 12, or -1"),
        ("label", np.full(SIZE, -2.0), r"value -2 in 2240 pixels"),
        ("label", np.full(SIZE, 255, np.uint8), r"value 255 in"),
        ("label", np.full(SIZE, 0.5), r"value 0\.5 in"),
        ("label", np.full(SIZE, np.nan), r"value nan in"),
        ("label", np.zeros((*SIZE, 3)), r"expected one number per pixel"),
        ("label", np.zeros(SIZE, bool), r"bool values of shape \[40, 56\], expected one number per pixel"),
        ("depth", np.full(SIZE, -1.0), r"value -1 in 2240 pixels, expected positive numbers, or 0"),
        ("depth", np.full(SIZE, np.inf), r"value inf in"),
        ("depth", np.full(SIZE, np.nan), r"value nan in"),
        ("depth", np.full(SIZE, 1e300), r"value 1e\+300 in"),
        ("depth", np.zeros((3, *SIZE)), r"expected one number per pixel"),
        ("depth", np.ones((20, 56)), r"depth of val/0: 56x20 pixels, expected 56x40 like its image"),
        ("normal", np.full((*SIZE, 3), 1.5), r"values outside \[-1, 1\], expected unit vectors"),
        ("normal", np.full((*SIZE, 3), np.nan), r"values outside \[-1, 1\]"),
        (
            "normal",
            np.zeros((3, *SIZE)),
            r"float64 values of shape \[3, 40, 56\], expected vectors \[H, W, 3\]",
        ),
        ("normal", np.zeros((*SIZE, 3), np.uint8), r"uint8 values of shape \[40, 56, 3\], expected vectors"),
        ("image", np.full((*SIZE, 3), 2.0), r"values outside \[0, 1\]"),
        ("image", np.zeros(SIZE), r"expected an image \[H, W, 3\]"),
    ],
)
def test_bad_arrays_are_named(arrays, folder, values, message):
    path = arrays / "val" / folder / "0.npy"
    np.save(path, values)
    with pytest.raises(DataError, match=message) as error:
        Nyud13(arrays, "val").read(0)
    assert str(path) in str(error.value) or (
        folder == "depth" and "pixels, expected 56x40" in str(error.value)
    )


@pytest.mark.parametrize(
    ("folder", "values", "message"),
    [
        ("segmentation", np.full(SIZE, 41, np.uint8), r"values 41 to 41, expected classes 1 to 40, or 0"),
        ("segmentation", np.zeros((*SIZE, 3), np.uint8), r"expected a whole number per pixel"),
        ("edge", np.full(SIZE, 7, np.uint8), r"values 7 to 7, expected 0 and 255, or 0 and 1"),
        ("edge", np.arange(2240, dtype=np.uint8).reshape(SIZE), r"values 0 to 255, expected 0 and 255"),
        ("normals", np.zeros(SIZE, np.uint8), r"expected an RGB picture"),
        ("edge", np.zeros((8, 8), np.uint8), r"8x8 pixels, expected 56x40 like its image"),
    ],
)
def test_bad_pictures_are_named(pictures, folder, values, message):
    Image.fromarray(values).save(pictures / folder / "0012.png")
    with pytest.raises(DataError, match=message):
        Nyud40(pictures, "val").read(0)


def test_damaged_and_missing_files_are_named(pictures):
    path = pictures / "normals" / "0012.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"normals/0012\.png: damaged or truncated"):
        Nyud40(pictures, "val").read(0)
    np.save(pictures / "segmentation" / "0012.npy", np.full(SIZE, 0.5))
    with pytest.raises(DataError, match=r"segmentation: both 0012\.npy and 0012\.png"):
        Nyud40(pictures, "val")
    (pictures / "segmentation" / "0012.png").unlink()
    with pytest.raises(DataError, match=r"segmentation/0012\.npy: .* expected a whole number per pixel"):
        Nyud40(pictures, "val").read(0)
    (pictures / "depth" / "0013.npy").unlink()
    with pytest.raises(DataError, match=r"depth: no file for 1 of 2 ids of val, expected 0013\.npy"):
        Nyud40(pictures, "val")
    (pictures / "gt_sets" / "val.txt").write_text("../0012\n")
    with pytest.raises(DataError, match=r"val\.txt: line 1: '\.\./0012', expected a relative path"):
        Nyud40(pictures, "val")


def test_links_out_of_the_folder_are_refused(arrays, tmp_path):
    outside = tmp_path / "outside.npy"
    np.save(outside, np.ones(SIZE))
    path = arrays / "val" / "depth" / "0.npy"
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(DataError, match=r"depth/0\.npy: a link to .*outside\.npy"):
        Nyud13(arrays, "val").read(0)
