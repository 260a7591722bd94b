"""PASCAL-Context as distributed: every label against what its definition says, pixel by pixel."""

from __future__ import annotations

import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch
from PIL import Image

from dmtl.data.benchmarks import pascal_context
from dmtl.data.benchmarks.detect import detect, open_distribution
from dmtl.data.benchmarks.pascal_classes import HUMAN_PARTS, WITH_NORMALS
from dmtl.data.benchmarks.pascal_context import PascalContext
from dmtl.data.loading.loader import make_loader
from dmtl.data.scenes import CLASSES
from dmtl.errors import DataError
from dmtl.metrics.morphology import thin
from tests.fixtures import write_fixture
from tests.fixtures.scene import scene

SIZE = (48, 64)
VOC = dict(table=11, seat=9, plant=16, vase=5, person=15, picture=20)
CONTEXT = dict(
    wall=440, floor=158, ceiling=68, door=115, window=360, picture=287, rug=330, table=397, seat=72,
    cabinet=46, plant=308, vase=307, ball=431, person=284,
)  # fmt: skip
WITHOUT_NORMALS = ("plant", "window", "ball")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_fixture("pascal-context", tmp_path_factory.mktemp("fixture") / "set", 8, 2, SIZE, seed=3)


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "set")


def save(root: Path, name: str, **variables) -> Path:
    path = root / name
    scipy.io.savemat(path, variables)
    return path


def struct(*rows: dict) -> np.ndarray:
    array = np.zeros((1, len(rows)), [(name, object) for name in rows[0]])
    for column, row in enumerate(rows):
        array[0, column] = tuple(row.values())
    return array


def person(mask, *parts: tuple[str, np.ndarray], class_ind: object = 15) -> dict:
    drawn = struct(*({"part_name": name, "mask": m} for name, m in parts)) if parts else np.zeros((0, 0))
    return {"class": "person", "class_ind": class_ind, "mask": mask, "parts": drawn}


def save_parts(root: Path, *things: dict) -> Path:
    anno = struct({"imname": "x", "objects": struct(*things)})
    return save(root, "human_parts/2008_000002.mat", anno=anno)


def taken(old: int, new: int) -> list[int]:
    """Which of `old` pixels each of `new` takes: the one in which its left edge lies."""
    return [i * old // new for i in range(new)]


def cubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, as OpenCV resizes, one pixel after the other."""

    def weight(t: float, a: float = -0.75) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    def matrix(old: int, new: int) -> np.ndarray:
        rows = np.zeros((new, old))
        for i in range(new):
            place = (i + 0.5) * old / new - 0.5
            for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                rows[i, min(max(j, 0), old - 1)] += weight(place - j)
        return rows

    tall, wide = matrix(image.shape[0], size[0]), matrix(image.shape[1], size[1])
    return np.einsum("yh,xw,hwc->yxc", tall, wide, image.astype(np.float64))


def unit(vectors_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, and where the length was one that a vector can have."""
    length = np.linalg.norm(vectors_HW3, axis=2, keepdims=True)
    return vectors_HW3 / np.maximum(length, 1e-9), ((length > 0.5) & (length < 1.5))[..., 0]


@pytest.mark.parametrize("index", range(8))
def test_every_label_of_the_fixture(written, index):
    """From the rendered scene and the classes' published numbers; images 3 and 7 have smaller labels."""
    sample = PascalContext(written, "train").read(index)
    size = SIZE if index % 4 != 3 else (36, 48)
    rows, columns = np.ix_(taken(size[0], SIZE[0]), taken(size[1], SIZE[1]))
    _, labels = scene("train", index, size, 3)
    names = np.array(CLASSES)[labels["semseg"]]
    assert list(sample.labels) == ["semseg", "human_parts", "sal", "normals", "edge"]
    assert sample.size == SIZE and sample.image.dtype == torch.uint8

    semseg = np.array([VOC.get(name, 0) for name in CLASSES])[labels["semseg"]]
    read = sample.labels["semseg"][0].numpy()
    counts = read != 255
    assert counts.any() and (counts.all() or index % 2 == 0)
    assert np.array_equal(read[counts], semseg[rows, columns][counts])

    parts = labels["human_parts"][rows, columns] if index % 4 in (0, 3) else np.full(SIZE, 255)
    assert np.array_equal(sample.labels["human_parts"][0].numpy(), parts)
    assert np.array_equal(sample.labels["sal"][0].numpy(), labels["sal"][rows, columns])

    label_map = np.vectorize(CONTEXT.get)(names)
    laplacian = scipy.ndimage.laplace(label_map.astype(float), mode="mirror")
    assert np.array_equal(sample.labels["edge"][0].numpy(), thin(laplacian != 0)[rows, columns])

    normals = sample.labels["normals"].permute(1, 2, 0).double().numpy()
    taught = ~np.isin(names, WITHOUT_NORMALS)
    stored = 2 * np.rint((labels["normals"] + 1) * 127.5) / 255 - 1
    vectors = np.where(taught[..., None], stored, 0)
    expected, known = unit(vectors if size == SIZE else cubic(vectors, SIZE))
    assert taught.all() or not known.all()
    assert np.array_equal((normals != 255).all(2), known)
    assert np.abs(normals - expected)[known].max() < 2e-5 and (normals[~known] == 255).all()


def test_the_fixture_holds_what_the_distribution_does(written):
    ids = [f"2008_{number:06d}" for number in range(2, 12)]
    lists = {
        split: (written / f"ImageSets/Context/{split}.txt").read_text().split() for split in ("train", "val")
    }
    assert lists == {"train": ids[:8], "val": ids[8:]}
    assert detect(written) == "pascal-context" and isinstance(
        open_distribution(written, "val"), PascalContext
    )
    parts_of_people, with_people = 0, 0
    for id in ids:
        with Image.open(written / f"JPEGImages/{id}.jpg") as image:
            assert image.format == "JPEG" and (image.height, image.width) == SIZE
        label_map = scipy.io.loadmat(written / f"pascal-context/trainval/{id}.mat")["LabelMap"]
        assert label_map.dtype == np.uint16 and label_map.ndim == 2
        inside = np.isin(np.unique(label_map), WITH_NORMALS)
        assert inside.any()
        anno = scipy.io.loadmat(written / f"human_parts/{id}.mat")["anno"][0][0][1]
        for thing in anno[0] if anno.size else ():
            assert thing[2].dtype == np.uint8 and thing[2].shape == label_map.shape
            with_people += thing[1].item() == 15
            parts_of_people += thing[1].item() == 15 and len(thing[3]) > 0
    assert 0 < parts_of_people < with_people
    with Image.open(written / f"semseg/VOC12/{ids[0]}.png") as image:
        assert image.mode == "P"


def test_the_same_fixture_again(written, tmp_path):
    again = write_fixture("pascal-context", tmp_path / "again", 8, 2, SIZE, seed=3)
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((written / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_the_fixture_without_scipy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"pascal-context needs scipy.*pip install 'dmtl\[pascal\]'"):
        write_fixture("pascal-context", tmp_path / "set", 1, 1, SIZE)
    assert not (tmp_path / "set").exists()


def test_tables():
    """Names and numbers as the published tables have them."""
    assert len(WITH_NORMALS) == len(set(WITH_NORMALS)) == 170
    known = dict(
        bag=9, bed=18, chair=72, floor=158, person=284, sofa=368, tvmonitor=427, wall=440, window=454
    )
    unknown = dict(
        aeroplane=2, building=44, grass=187, pottedplant=308, sky=360, tree=420, unknown=431, wood=458
    )
    assert set(known.values()) <= set(WITH_NORMALS) and not set(unknown.values()) & set(WITH_NORMALS)
    groups = {
        1: "hair head lear lebrow leye mouth nose rear rebrow reye",
        2: "neck torso",
        3: "luarm ruarm",
        4: "lhand llarm rhand rlarm",
        5: "luleg ruleg",
        6: "lfoot llleg rfoot rlleg",
    }
    assert {name: number for number, names in groups.items() for name in names.split()} == HUMAN_PARTS


def test_edges_of_a_small_map(root):
    """By hand: 4 neighbours minus 4 times the middle, the border mirrored, then thinned. A pixel whose
    neighbours cancel (1 and 3 around a 2) is no edge."""
    labels = np.array([[1, 1, 2, 3, 3, 3]] * 5, np.uint16)
    save(root, "pascal-context/trainval/2008_000002.mat", LabelMap=labels)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(root / "JPEGImages/2008_000002.jpg")
    data = PascalContext(root, "train", ["edge"])
    # Laplacian of a row: 0 (mirror of 1 is 1), 1, 0, -1, 0, 0; lines of one pixel stay as they are.
    assert data.stored(0, "edge").tolist() == [[0, 1, 0, 1, 0, 0]] * 5
    assert data.boundaries(0).tolist() == [[False, True, True, False, False, False]] * 5
    corner = np.full((5, 6), 7, np.uint16)
    corner[0, 0] = 9  # its own Laplacian is -8, its right and lower neighbours' 2
    save(root, "pascal-context/trainval/2008_000002.mat", LabelMap=corner)
    data = PascalContext(root, "train", ["edge"])
    around = np.zeros((5, 6), bool)
    around[0, :2] = around[1, 0] = True
    assert np.array_equal(data.stored(0, "edge") == 1, thin(around))
    assert np.flatnonzero(data.boundaries(0)).tolist() == [0]
    assert PascalContext(root, "train", ["semseg"]).boundaries(0) is None


def test_edges_mirror_the_map_at_its_border(root):
    """A map of noise, in which many differences cancel that would not with another border."""
    labels = np.random.default_rng(0).integers(1, 4, SIZE).astype(np.uint16)
    save(root, "pascal-context/trainval/2008_000002.mat", LabelMap=labels)
    mirrored, repeated = (
        scipy.ndimage.laplace(labels.astype(float), mode=m) != 0 for m in ("mirror", "nearest")
    )
    read = PascalContext(root, "train").stored(0, "edge") == 1
    assert np.array_equal(read, thin(mirrored)) and not np.array_equal(read, thin(repeated))


def test_boundaries_of_smaller_labels_have_the_image_s_size(written):
    data = PascalContext(written, "train")
    _, labels = scene("train", 3, (36, 48), 3)
    names = np.array([CONTEXT[name] for name in CLASSES])[labels["semseg"]]
    names = names[np.ix_(taken(36, 48), taken(48, 64))]
    expected = np.zeros(SIZE, bool)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            expected[y, x] = any(names[y, x] != names[p] for p in others if p[0] < SIZE[0] and p[1] < SIZE[1])
    assert data.boundaries(3).dtype == torch.bool and np.array_equal(data.boundaries(3).numpy(), expected)


def test_later_parts_lie_over_earlier_ones(root):
    whole = np.ones(SIZE, np.uint8)
    left, top, dot = (np.zeros(SIZE, np.uint8) for _ in range(3))
    left[:, :20], top[:10], dot[5, 5] = 1, 7, 255
    nobody = np.zeros(SIZE, np.uint8)
    save_parts(
        root,
        person(whole, ("torso", left), ("hair", top)),
        person(whole, ("pot", whole), class_ind=16),
        person(nobody, ("neck", dot), ("rlarm", dot)),
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[:, :20], expected[:10], expected[5, 5] = 2, 1, 4
    assert np.array_equal(PascalContext(root, "train").stored(0, "human_parts"), expected)


@pytest.mark.parametrize(
    "things",
    [
        [person(np.ones(SIZE, np.uint8))],
        [person(np.ones(SIZE, np.uint8), ("head", np.ones(SIZE, np.uint8)), class_ind=12)],
        [person(np.zeros(SIZE, np.uint8), ("head", np.ones(SIZE, np.uint8)))],
        [person(np.ones(SIZE, np.uint8), ("head", np.zeros(SIZE, np.uint8)))],
    ],
    ids=["a person without parts", "a dog", "an invisible person", "an invisible part"],
)
def test_without_parts_nothing_counts(root, things):
    save_parts(root, *things)
    assert (PascalContext(root, "train").stored(0, "human_parts") == np.full(SIZE, 255)).all()


def test_the_voc_s_classes_come_first(root):
    (root / "semseg/VOC12").mkdir(exist_ok=True)
    for folder, number in (("VOC12", 3), ("pascal-context", 4)):
        Image.fromarray(np.full(SIZE, number, np.uint8)).save(root / f"semseg/{folder}/2008_000002.png")
    assert (PascalContext(root, "train").stored(0, "semseg") == 3).all()
    (root / "semseg/VOC12/2008_000002.png").unlink()
    assert (PascalContext(root, "train").stored(0, "semseg") == 4).all()


def test_salient_is_more_than_half(root):
    values = np.zeros(SIZE, np.uint8)
    values[0, :4] = 126, 127, 128, 129
    Image.fromarray(values).save(root / "sal_distill/2008_000002.png")
    label = PascalContext(root, "train").stored(0, "sal")
    assert label[0, :4].tolist() == [0, 0, 1, 1] and label.sum() == 2 and label.dtype == np.uint8


def test_black_and_kept_normals(root):
    """Codes are kept as they are on the classes that NYUD-v2 has too, and black elsewhere."""
    codes = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(codes).save(root / "normals_distill/2008_000002.png")
    labels = np.full(SIZE, 440, np.uint16)
    labels[:9], labels[9:12], labels[12:20] = 0, 427, 360
    save(root, "pascal-context/trainval/2008_000002.mat", LabelMap=labels)
    codes[:9] = codes[12:20] = 0
    assert np.array_equal(PascalContext(root, "train").stored(0, "normals"), codes)


def test_resized_normals_are_stored_as_unit_vectors_or_zeros(written):
    stored = PascalContext(written, "train").stored(3, "normals")
    length = np.linalg.norm(stored, axis=2)
    assert stored.dtype == np.float32 and stored.shape == (*SIZE, 3)
    assert ((length == 0) | (np.abs(length - 1) < 1e-6)).all() and 0 < (length == 0).mean() < 1


def test_a_sample_parses_its_label_map_once(written, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pascal_context, "read_mat", lambda path, names, read=pascal_context.read_mat: (
            asked.append(names[0]), read(path, names))[1]
    )  # fmt: skip
    data = PascalContext(written, "train")
    data.read(0)
    data.boundaries(0)
    assert sorted(asked) == ["LabelMap", "anno"]
    data.read(1, ["edge"])
    data.read(0, ["normals"])
    assert sorted(asked) == ["LabelMap"] * 3 + ["anno"]


def test_a_task_reads_its_own_files_alone(root):
    for folder in ("human_parts", "normals_distill", "sal_distill", "semseg"):
        shutil.rmtree(root / folder)
    assert list(PascalContext(root, "train", ["edge"]).read(0).labels) == ["edge"]


def test_workers_read_the_same(written):
    data = pickle.loads(pickle.dumps(PascalContext(written, "train")))
    alone, shared = (list(make_loader(data, batch_size=4, shuffle=False, workers=n)) for n in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert one.ids == other.ids
        assert all(torch.equal(one.labels[task], other.labels[task]) for task in data.tasks)


def refused(root: Path, task: str, path: str) -> str:
    data = PascalContext(root, "train", [task])
    with pytest.raises(DataError, match=re.escape(str(root / path))) as error:
        data.stored(0, task)
    assert ", expected " in str(error.value)
    return str(error.value)


FILES = {
    "semseg": "semseg/pascal-context/2008_000002.png",
    "human_parts": "human_parts/2008_000002.mat",
    "sal": "sal_distill/2008_000002.png",
    "normals": "normals_distill/2008_000002.png",
    "edge": "pascal-context/trainval/2008_000002.mat",
}


@pytest.mark.parametrize("task", FILES)
def test_a_missing_file_is_named(root, task):
    shutil.rmtree(root / "semseg/VOC12")
    (root / FILES[task]).unlink()
    assert "No such file" in refused(root, task, FILES[task])


@pytest.mark.parametrize("task", FILES)
def test_a_link_out_of_the_folder_is_not_followed(root, task):
    shutil.rmtree(root / "semseg/VOC12")
    shutil.move(root / FILES[task], root.parent / "elsewhere")
    (root / FILES[task]).symlink_to(root.parent / "elsewhere")
    assert "a link to" in refused(root, task, FILES[task])


@pytest.mark.parametrize(
    "value",
    [
        "text",
        np.zeros((0, 0)),
        np.ones((*SIZE, 2)),
        np.full(SIZE, 460),
        np.full(SIZE, -1),
        np.full(SIZE, 1.5),
        np.full(SIZE, np.nan),
        np.array([[1, "a"]], object),
        struct({"LabelMap": np.ones(SIZE)}),
    ],
    ids=["text", "empty", "3-D", "460", "-1", "1.5", "nan", "cell", "struct"],
)
def test_what_is_no_label_map(root, value):
    save(root, FILES["edge"], LabelMap=value)
    refused(root, "edge", FILES["edge"])
    refused(root, "normals", FILES["edge"])


MASK = np.ones(SIZE, np.uint8)


@pytest.mark.parametrize(
    ("anno", "reason"),
    [
        ("text", "no annotation"),
        (np.ones((2, 2)), "no annotation"),
        (np.zeros((0, 0)), "no annotation"),
        (struct({"imname": "x"}), "no annotation"),
        (struct({"objects": "text"}), "no annotation"),
        (struct({"objects": struct(person(MASK, class_ind="15"))}), "no annotation"),
        (struct({"objects": struct(person(MASK, class_ind=np.zeros((0, 0))))}), "no annotation"),
        (struct({"objects": struct(person("mask", ("head", MASK)))}), "no annotation"),
        (struct({"objects": struct(person(MASK[..., None], ("head", MASK)))}), "dimensions|sizes"),
        (struct({"objects": struct(person(MASK, ("head", MASK[:9])))}), "several sizes"),
        (struct({"objects": struct({**person(MASK), "parts": np.ones((2, 2))})}), "no annotation"),
        (struct({"objects": struct(person(MASK, ("tail", MASK)))}), "'tail', expected one of hair, head"),
        (struct({"objects": struct(person(MASK, (np.ones((2, 2)), MASK)))}), "a part of a person named"),
    ],
)
def test_what_is_no_annotation(root, anno, reason):
    save(root, FILES["human_parts"], anno=anno)
    assert re.search(reason, refused(root, "human_parts", FILES["human_parts"]))


def test_pictures_of_another_kind(root):
    shutil.rmtree(root / "semseg/VOC12")
    colour = Image.fromarray(np.zeros((*SIZE, 3), np.uint8))
    for task in ("semseg", "sal"):
        colour.save(root / FILES[task])
        assert "expected 8 bits per pixel" in refused(root, task, FILES[task])
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(root / FILES["sal"])
    assert "expected 8 bits per pixel" in refused(root, "sal", FILES["sal"])
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / FILES["normals"])
    assert "expected an RGB picture" in refused(root, "normals", FILES["normals"])
    colour.resize((9, 9)).save(root / FILES["normals"])
    assert "of 64x48 as its LabelMap" in refused(root, "normals", FILES["normals"])
    Image.fromarray(np.full(SIZE, 21, np.uint8)).save(root / FILES["semseg"])
    with pytest.raises(DataError, match="value 21 in 3072 pixels, expected 0 to 20, or 255"):
        PascalContext(root, "train").read(0, ["semseg"])


def test_lists_and_splits(root):
    with pytest.raises(DataError, match="split must be one of train, val, got 'test'"):
        PascalContext(root, "test")
    path = root / "ImageSets/Context/train.txt"
    for line in ("../2008_000002", "/etc/passwd", "2008_000002\n2008_000002", ""):
        path.write_text(line)
        with pytest.raises(DataError, match=re.escape(str(path))):
            PascalContext(root, "train")
    path.unlink()
    with pytest.raises(DataError, match=re.escape(str(path))):
        PascalContext(root, "train")
