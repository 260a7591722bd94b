import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.data.folder.write import export_folder
from dmtl.data.loading.disk_cache import DiskCached
from dmtl.data.loading.transforms import resize_nearest, resize_thin
from dmtl.data.loading.wrappers import Cached, Resized, Subset
from dmtl.errors import DataError
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
    depth = np.where(stored["depth"] == 0, data.tasks["depth"].ignore, stored["depth"] * 0.01)
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


def contours(folder, id: str, pixels) -> None:
    path = folder / "contours" / f"{id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_how_it_is_evaluated_is_known_to_every_wrapper(folder, tmp_path):
    """`evaluation` and `boundaries` pass through subsets and caches; a resized copy shrinks the latter."""
    evaluation = {"frame": [32, 40], "max_dist": 0.01}
    for seed, id in enumerate(["a", "b", "c/d"]):
        contours(folder, id, arrays(seed)["edge"])
    describe(folder, evaluation=evaluation, boundaries="contours")
    data = Folder(folder, "train")
    for wrapped in (data, Cached(data), DiskCached(data, tmp_path / "cache"), Subset(data, [0, 1, 2])):
        assert wrapped.evaluation == evaluation
        assert wrapped.boundaries(2).dtype == torch.bool
        assert (wrapped.boundaries(2).numpy() == (arrays(2)["edge"] == 1)).all()
        assert wrapped.image_file(2) == folder / "images" / "c" / "d.png"
    assert (Subset(data, [1]).boundaries(0).numpy() == (arrays(1)["edge"] == 1)).all()
    small = Resized(data, (12, 16))
    assert small.evaluation == evaluation and small.boundaries(0).shape == (12, 16)
    assert small.image_file(0) is None


def test_without_a_word_there_is_no_evaluation(folder):
    data = Folder(folder, "train")
    assert data.evaluation == {} and data.boundaries(0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": 3}, "evaluation is 3, expected a mapping"),
        ({"evaluation": {"frames": [2, 2]}}, "unknown key 'frames', did you mean 'frame'?"),
        ({"evaluation": {"frame": 512}}, r"frame is 512, expected \[height, width\]"),
        ({"evaluation": {"frame": [512]}}, r"frame is \[512\], expected"),
        ({"evaluation": {"frame": [512, 0]}}, r"frame is \[512, 0\], expected"),
        ({"evaluation": {"frame": [True, 4]}}, r"frame is \[True, 4\], expected"),
        ({"evaluation": {"frame": [100_000, 100_000]}}, "at most 64 million"),
        ({"evaluation": {"max_dist": 0}}, "max_dist is 0, expected a share of the image's diagonal"),
        ({"evaluation": {"max_dist": float("nan")}}, "max_dist is nan"),
        ({"evaluation": {"max_dist": "0.1"}}, "max_dist is '0.1'"),
        ({"boundaries": "../contours"}, "boundaries: '../contours', expected letters"),
        ({"boundaries": "images"}, "boundaries is 'images', which is the folder of the images"),
        ({"boundaries": "edge"}, "cannot be called 'edge', because that is the folder of the boundaries"),
    ],
)
def test_a_description_that_cannot_be_is_refused(folder, changes, message):
    describe(folder, **changes)
    with pytest.raises(DataError, match=f"^{folder}/dataset.yaml: .*{message}"):
        Folder(folder, "train")


def test_thin_tasks_go_there_and_back(folder, tmp_path):
    """`thin` is an option of any binary task, and says how its labels shrink."""
    describe(folder, tasks={**TASKS, "edge": {"kind": "binary", "thin": False}})
    data = Folder(folder, "train")
    assert data.tasks["cracks"].thin and not data.tasks["edge"].thin and not data.tasks["semseg"].thin
    export_folder(data, tmp_path / "copy")
    assert Folder(tmp_path / "copy", "train").tasks == data.tasks
    small, label = Resized(data, (6, 8)).read(2).labels, torch.from_numpy(arrays(2)["cracks"])[None]
    assert torch.equal(small["cracks"], resize_thin(label, (6, 8)))
    label = torch.from_numpy(arrays(2)["edge"])[None]
    assert torch.equal(small["edge"], resize_nearest(label, (6, 8)))


def test_boundaries_belong_to_the_first_thin_task(folder):
    describe(folder, boundaries="contours")
    for id in ("a", "b", "c/d"):
        path = folder / "contours" / f"{id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays(0)["edge"]).save(path)
    for tasks in (None, ["edge"]):  # whatever is read of them
        assert Subset(Folder(folder, "train", tasks), [0]).boundary_task == "cracks"
    describe(folder, boundaries="contours", tasks={**TASKS, "cracks": {"kind": "binary"}})
    assert Folder(folder, "train").boundary_task == "edge"


def test_boundaries_that_are_none_are_refused(folder):
    describe(folder, boundaries="contours")
    assert Folder(folder, "train").boundaries(0) is None  # this split has none
    contours(folder, "a", np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(DataError, match="contours: 2 of the 3 images of train have no boundaries, .*'b'"):
        Folder(folder, "train")
    data = Folder(folder, "val")
    with pytest.raises(DataError, match="contours/a.png: value 255, expected 0 and 1"):
        data.boundaries(0)
    contours(folder, "a", np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(DataError, match=r"contours/a.png: pixels of shape \[24, 33\], expected \[24, 32\]"):
        data.boundaries(0)


@pytest.mark.parametrize(
    "name", ["images/b.png", "edge/b.png", "images/c", "edge", "splits/train.txt", "dataset.yaml", "l.csv"]
)
def test_links_out_of_the_folder_are_not_followed(folder, tmp_path_factory, name):
    """Files and folders alike, wherever the reader meets them; the folder itself may be a link."""
    outside = tmp_path_factory.mktemp("outside") / "moved"
    (folder / "l.csv").write_text(f"id,{','.join(TASKS)}\na,1,1,1,0,1\nb,0,1,1,1,1\nc/d,1,1,1,1,1\n")
    describe(folder, labels="l.csv")
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    link = outside.parent / "data"
    link.symlink_to(folder)
    with pytest.raises(DataError, match=f"^{link}/{name}.*: a link to .* stay inside"):
        data = Folder(link, "train")
        for index in range(3):
            data.read(index)
    (folder / name).unlink()
    outside.rename(folder / name)
    assert Folder(link, "train").read(2).id == "c/d"


def test_chosen_ids(folder):
    data = Folder(folder, "train", ids=["c/d", "a"])
    assert data.ids == ["c/d", "a"] and data.read(0).id == "c/d"
    with pytest.raises(DataError, match="splits/train.txt: id 'x' is missing"):
        Folder(folder, "train", ids=["a", "x"])
