import numpy as np
import torch
from PIL import Image

from dmtl.data.folder import Folder
from tests.data.conftest import HEIGHT, TASKS, WIDTH, arrays, describe


def test_reads_every_kind_exactly(folder):
    data = Folder(folder, "train")
    assert data.name == "small" and data.ids == ["a", "b", "c/d"] and list(data.tasks) == sorted(TASKS)
    stored, sample = arrays(2), data.read(2)
    assert sample.id == "c/d" and sample.size == (HEIGHT, WIDTH)
    assert sample.image.dtype == torch.uint8
    assert (sample.image.permute(1, 2, 0).numpy() == stored["images"]).all()
    for task in ("semseg", "edge", "cracks"):
        assert sample.labels[task].dtype == torch.uint8
        assert (sample.labels[task][0].numpy() == stored[task]).all()
    depth = np.where(stored["depth"] == 0, 255, stored["depth"] * 0.01)
    assert np.allclose(sample.labels["depth"][0], depth, rtol=1e-6)
    vector = stored["normals"] * (2 / 255) - 1
    vector /= np.linalg.norm(vector, axis=2, keepdims=True)
    assert np.allclose(sample.labels["normals"].permute(1, 2, 0), vector, atol=1e-6)


def test_options_of_the_yaml_reach_the_task(folder):
    data = Folder(folder, "train")
    assert data.tasks["semseg"].classes == ("sky", "road", "car")
    assert data.tasks["cracks"].thin and not data.tasks["normals"].thin


def test_a_missing_file_is_a_missing_label(folder):
    data = Folder(folder, "train")
    assert set(data.read(0).labels) == set(TASKS) - {"depth"}
    assert set(data.read(1).labels) == set(TASKS) - {"semseg"}
    assert data.available().statistics()["per_task"] == {
        "semseg": 2,
        "edge": 3,
        "normals": 3,
        "depth": 2,
        "cracks": 3,
    }


def test_only_the_labels_asked_for_are_opened(folder):
    (folder / "semseg" / "a.png").write_bytes(b"damaged")
    data = Folder(folder, "train")
    assert list(data.read(0, ["edge"]).labels) == ["edge"]
    assert data.read(0, []).labels == {}
    assert list(Folder(folder, "val", tasks=["edge", "normals"]).read(0).labels) == ["edge", "normals"]


def test_csv_hides_labels_and_leaves_other_splits_alone(folder):
    describe(folder, labels="labels.csv")
    rows = ["id,edge,semseg,normals,depth,cracks", "b,1,0,0,0,0", "c/d,0,1,0,0,0"]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    assert set(Folder(folder, "val").read(0).labels) == set(TASKS) - {"depth"}
    (folder / "splits" / "train.txt").write_text("b\nc/d\n")
    data = Folder(folder, "train")
    assert [list(data.read(i).labels) for i in range(2)] == [["edge"], ["semseg"]]


def test_palette_and_one_bit_pngs_are_indices(folder):
    ids = arrays(0)["semseg"]
    palette = Image.fromarray(ids, mode="L").convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.putpalette(list(range(256)) * 3)
    palette.save(folder / "semseg" / "a.png")
    Image.fromarray(arrays(0)["edge"] * 255).convert("1").save(folder / "edge" / "a.png")
    sample = Folder(folder, "val").read(0)
    assert (sample.labels["semseg"][0].numpy() == ids).all()
    assert (sample.labels["edge"][0].numpy() == arrays(0)["edge"]).all()


def test_npy_labels(folder):
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (HEIGHT, WIDTH))
    depth[0, :3] = np.nan, np.inf, -1
    normals = rng.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[0, 0], normals[0, 1] = 0, np.nan
    ids = rng.integers(0, 3, (HEIGHT, WIDTH))
    for name, array in (("depth", depth[..., None]), ("normals", normals), ("semseg", ids)):
        (folder / name / "a.png").unlink(missing_ok=True)
        np.save(folder / name / "a.npy", array)
    describe(folder, tasks={**TASKS, "depth": {"kind": "scalar", "unknown": -1}})
    labels = Folder(folder, "val").read(0).labels
    assert labels["depth"][0, 0, :3].tolist() == [255] * 3
    assert np.allclose(labels["depth"][0, 1:], depth[1:])
    assert (labels["normals"][:, 0, :2] == 255).all()
    assert np.allclose(labels["normals"][:, 1:], normals.transpose(2, 0, 1)[:, 1:], atol=1e-6)
    assert (labels["semseg"][0].numpy() == ids).all()


def test_vectors_that_no_rounding_explains_are_unknown(folder):
    pixels = arrays(0)["normals"]
    pixels[0, :3] = [[0, 0, 0], [255, 255, 255], [127, 128, 127]]
    Image.fromarray(pixels).save(folder / "normals" / "a.png")
    normals = Folder(folder, "val").read(0).labels["normals"]
    assert (normals[:, 0, :3] == 255).all()
    assert ((normals[:, 1:].norm(dim=0) - 1).abs() < 1e-5).all()


def test_camvid_works_as_it_is(camvid_dir):
    train, val = Folder(camvid_dir, "train"), Folder(camvid_dir, "val")
    assert (len(train), len(val)) == (367, 101) and list(train.tasks) == ["semseg", "sal", "edge"]
    assert train.tasks["semseg"].channels == 11 and train.tasks["edge"].thin
    assert train.available().matrix.all()
    sample = val.read(3)
    assert sample.size == (360, 480) and {label.shape for label in sample.labels.values()} == {(1, 360, 480)}
    # The data set's README: sal and edge are derived from semseg, so they share its unknown pixels.
    assert ((sample.labels["semseg"] == 255) == (sample.labels["sal"] == 255)).all()
