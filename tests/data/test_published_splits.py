"""Published tables of labels: the counts of the papers' files, and files in their exact formats made here."""

import itertools
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.labels.published import MAX_BYTES, read_split_table
from dmtl.errors import DataError

PASCAL = ("semseg", "human_parts", "sal", "normals", "edge")
BY_IMAGE = {"2008_000008": [1, 0, 0, 1, 0], "2008_000002": [0, 1, 0, 0, 0], "2010_003120": [0, 0, 1, 1, 1]}
BY_TASK = {
    task: [id for id in sorted(BY_IMAGE) if BY_IMAGE[id][number]] for number, task in enumerate(PASCAL)
}
ROWS = [[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]]


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def save_npy(path, value, version: int):
    """np.save of an object; before NumPy 2 its modules had other names, in an older pickle."""
    np.save(path, np.array(value, dtype=object), allow_pickle=True)
    if version < 2:
        header = path.read_bytes()[:128]
        body = pickle.dumps(np.array(value, dtype=object), 3).replace(b"numpy._core.", b"numpy.core.")
        path.write_bytes(header + body)
    return path


def by_image(**entries):
    return {np.str_(id): list(row) for id, row in (BY_IMAGE | entries).items()}


def by_task(**entries):
    return {task: [np.str_(id) for id in ids] for task, ids in (BY_TASK | entries).items()}


def table(matrix: LabelMatrix) -> dict[str, dict[str, bool]]:
    return {i: dict(zip(matrix.tasks, map(bool, row))) for i, row in zip(matrix.ids, matrix.matrix)}


# the published files themselves

ONE = {"human_parts": 999, "edge": 999, "semseg": 1000, "normals": 1000, "sal": 1000}
RANDOM = {"human_parts": 847, "edge": 2557, "semseg": 2450, "normals": 2480, "sal": 2445}
UP_TO_FOUR = {"1": 1538, "2": 1529, "3": 1541, "4": 390}
PUBLISHED = {  # labels per task, images by their number of labels
    "pascal/onelabel.npy": (ONE, {"1": 4998}),
    "pascal/randomlabels.npy": (RANDOM, UP_TO_FOUR),
    "pascal/new_onelabel.pth": (ONE, {"1": 4998}),
    "pascal/new_randomlabels.pth": (RANDOM, UP_TO_FOUR),
    "nyud13/onelabel.pth": ({"semseg": 265, "depth": 265, "normals": 265}, {"1": 795}),
    "nyud13/randomlabels.pth": ({"semseg": 392, "depth": 408, "normals": 385}, {"1": 405, "2": 390}),
    "cityscapes/onelabel.pth": ({"semseg": 1487, "depth": 1488}, {"1": 2975}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(shared_dir, name):
    labels = read_split_table(shared_dir / "partial_labels" / name)
    facts = labels.statistics()
    assert (facts["per_task"], facts["labels_per_image"]) == PUBLISHED[name]
    if "pascal" not in name:
        assert labels.ids == [f"train/{row}" for row in range(facts["images"])]


@pytest.mark.parametrize("name", ["onelabel", "randomlabels"])
def test_both_published_forms_of_pascal_say_the_same(shared_dir, name):
    folder = shared_dir / "partial_labels" / "pascal"
    by_task, by_image = read_split_table(folder / f"{name}.npy"), read_split_table(folder / f"new_{name}.pth")
    assert by_image.subset(by_task.ids, by_task.tasks) == by_task


def test_published_tensors_as_torch_reads_them(shared_dir):
    for name in ("nyud13/randomlabels.pth", "cityscapes/onelabel.pth"):
        path = shared_dir / "partial_labels" / name
        tensor = torch.load(path, weights_only=True)["labels_weights"]
        assert np.array_equal(read_split_table(path).matrix, tensor.numpy() == 1)


# the same formats, made here


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.half]
)
def test_tensors(tmp_path, zipped, dtype):
    whole = torch.tensor([[9, 9, 9], *ROWS]).to(dtype)
    if dtype == torch.bool:
        whole[0] = False
    for tensor in (whole[1:], whole[1:].T.contiguous().T):  # a part of a storage, and columns first
        path = saved(tmp_path / "x.dat", {"labels_weights": tensor}, _use_new_zipfile_serialization=zipped)
        labels = read_split_table(path)
        assert (labels.ids, labels.name) == (["train/0", "train/1", "train/2", "train/3"], str(path))
        assert labels.tasks == ["semseg", "depth", "normals"] and labels.matrix.astype(int).tolist() == ROWS
        named = read_split_table(path, tasks=["normals", "edge", "depth"], ids=["d", "c", "b", "a"])
        assert table(named)["d"] == {"normals": True, "edge": False, "depth": False}
    two = saved(tmp_path / "two", {"labels_weights": whole[1:, :2]}, _use_new_zipfile_serialization=zipped)
    assert read_split_table(two).tasks == ["semseg", "depth"]
    assert read_split_table(two).matrix.astype(int).tolist() == [row[:2] for row in ROWS]


@pytest.mark.parametrize("zipped", [True, False])
def test_lists_by_image(tmp_path, zipped):
    for value in (by_image(), dict(BY_IMAGE), {id: np.array(row).tolist() for id, row in BY_IMAGE.items()}):
        path = saved(tmp_path / "x.pth", value, _use_new_zipfile_serialization=zipped)
        labels = read_split_table(path)
        assert table(labels) == {id: dict(zip(PASCAL, map(bool, row))) for id, row in BY_IMAGE.items()}
        other = read_split_table(path, tasks=PASCAL[::-1], ids=["2010_003120"])
        assert table(other) == {"2010_003120": dict(zip(PASCAL[::-1], [False, False, True, True, True]))}


@pytest.mark.parametrize("version", [1, 2])
def test_lists_by_task(tmp_path, version):
    for value in (by_task(), dict(BY_TASK), by_task(sal=[])):
        labels = read_split_table(save_npy(tmp_path / "x.npy", value, version))
        assert labels.ids == sorted(BY_IMAGE) and labels.tasks == list(PASCAL)
        for task, id in itertools.product(PASCAL, BY_IMAGE):
            assert bool(labels.column(task)[labels.ids.index(id)]) == (id in list(map(str, value[task])))
    chosen = read_split_table(
        tmp_path / "x.npy", tasks=["edge", "semseg"], ids=["2010_003120", "2008_000008"]
    )
    assert table(chosen) == {"2010_003120": {"edge": True, "semseg": False},
                             "2008_000008": {"edge": False, "semseg": True}}  # fmt: skip


def test_one_table_in_every_format(tmp_path):
    """What a file is called says nothing."""
    images = read_split_table(saved(tmp_path / "a.csv", by_image()))
    tasks = read_split_table(save_npy(tmp_path / "b.npy", by_task(), 2).rename(tmp_path / "b.pth"))
    zipped_tasks = read_split_table(saved(tmp_path / "c", by_task()))
    images.write_csv(tmp_path / "d.npy")
    text = read_split_table(tmp_path / "d.npy")
    for other in (tasks, zipped_tasks, text):
        assert other.subset(images.ids, images.tasks) == images
    assert read_split_table(tmp_path / "d.npy", tasks=["sal"], ids=["2010_003120"]).matrix.tolist() == [
        [True]
    ]


# everything else

BAD = {
    "seven": ({"labels_weights": torch.zeros(2, 3) + 7}, "neither 0 nor 1"),
    "nan": ({"labels_weights": torch.zeros(2, 3) * float("nan")}, "neither 0 nor 1"),
    "no columns": ({"labels_weights": torch.zeros(2, 0)}, "shape [2, 0]"),
    "one column": ({"labels_weights": torch.zeros(2, 1)}, "1 columns without names, expected 2 or 3"),
    "flat": ({"labels_weights": torch.zeros(6)}, "shape [6]"),
    "two entries": ({"labels_weights": torch.zeros(2, 3), "x": 1}, "neither labels_weights nor lists"),
    "bare tensor": (torch.zeros(2, 3), "holds Tensor, not entries by name"),
    "other tensor": ({"weights": torch.zeros(2, 3)}, "neither labels_weights nor lists"),
    "nothing": ({}, "not entries by name"),
    "number": (5, "holds int, not entries"),
    "uneven": (by_image(a=[1]), "lists of 1 and of 5 numbers"),
    "three numbers": ({"a": [1, 0, 1]}, "3 columns without names, expected 5 as published"),
    "two": (by_image(a=[1, 0, 2, 0, 0]), "neither 0 nor 1"),
    "mixed": ({"a": [1, "b"]}, "neither ids nor only 0 and 1"),
    "nested": ({"a": [["b"]]}, "neither ids nor only 0 and 1"),
    "empty lists": ({"a": [], "b": []}, "neither ids nor only 0 and 1"),
    "twice": (by_task(sal=["a", "a"]), "an id twice under 'sal'"),
    "outside": (by_task(sal=["../a"]), "id: '../a', expected a relative path"),
    "line": ({"a\nb": [0, 1, 0, 1, 0]}, "expected a relative path"),
    "task": ({"../sal": ["a"]}, "name of a task: '../sal'"),
    "many tasks": ({f"t{n}": ["a"] for n in range(100)}, "100 tasks"),
    "module": ({"labels_weights": torch.nn.Linear(2, 2)}, "refers to 'torch.nn.modules.linear.Linear'"),
    "parameter": ({"labels_weights": torch.nn.Parameter(torch.ones(2, 3))}, "neither labels_weights"),
    "repeated": ({"labels_weights": torch.zeros(1, 1).expand(9000, 900)}, "a tensor of 8100000 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_bad_contents(tmp_path, name, zipped):
    value, message = BAD[name]
    path = saved(tmp_path / "x.pth", value, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError) as error:
        read_split_table(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and ", expected " in str(error.value)


def rezipped(path, change):
    """The zip file at `path` with its members (name -> content) changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    compression = change(members) or zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("x/data.pkl") and None, "damaged (RuntimeError)"),
        (lambda m: m.pop("x/data/0") and None, "damaged (RuntimeError)"),
        (lambda m: m.update({"x/data/0": b"abc"}), "damaged (RuntimeError)"),
        (lambda m: m.update({"x/byteorder": b"middle"}), "damaged (ValueError)"),
        (
            lambda m: m.update({"x/data.pkl": b"\x80\x02cos\nsystem\n"}),
            "refers to 'os.system', which is not allowed",
        ),
        (
            lambda m: m.update({"x/data/0": bytes(MAX_BYTES)}) or zipfile.ZIP_DEFLATED,
            "a zip file that is larger when unpacked",
        ),
    ],
)
def test_bad_zip_files(tmp_path, change, message):
    path = saved(tmp_path / "x.pth", {"labels_weights": torch.tensor(ROWS).float()})
    rezipped(path, change)
    with pytest.raises(DataError) as error:
        read_split_table(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


class Runs:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("form", ["zip", "former", "npy"])
def test_no_code_runs(tmp_path, form):
    trace, path = tmp_path / "trace", tmp_path / "table"
    for evil in (
        Runs(os.system, f"touch {trace}"),
        Runs(eval, f"open({str(trace)!r}, 'w')"),
        Runs(trace.write_text, "x"),
        Runs(torch.load, str(trace)),
        Runs(np.load, str(trace)),
        os.system,
    ):
        if form == "npy":
            save_npy(path, {"sal": ["a", evil]}, 2)
            path.with_suffix(".npy").rename(path)
        else:
            saved(path, {"sal": ["a", evil]}, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(DataError, match=f"{path}: (refers to '.*', which is not allowed|damaged)"):
            read_split_table(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {trace}")))
    assert trace.exists(), "the same pickle does run elsewhere"


def test_lengths_that_a_pickle_claims(tmp_path):
    """No memory is taken for what the file does not hold."""
    header = save_npy(tmp_path / "x.npy", by_task(), 2).read_bytes()[:128]
    for body in (
        b"B\xff\xff\xff\x7f.",
        b"X\xff\xff\xff\xff.",
        b"\x96" + b"\xff" * 7 + b"\x0f.",
        b"]r\xff\xff\xff\x7f.",
        b"]p2000000000\n.",
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",
    ):
        (tmp_path / "x.npy").write_bytes(header + b"\x80\x04" + body)
        tracemalloc.start()
        with pytest.raises(DataError, match="x.npy: "):
            read_split_table(tmp_path / "x.npy")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()


def test_other_bad_files(tmp_path):
    tensor = {"labels_weights": torch.tensor(ROWS).float()}
    former = saved(tmp_path / "f", tensor, _use_new_zipfile_serialization=False).read_bytes()
    zipped = saved(tmp_path / "z", tensor).read_bytes()
    np.save(tmp_path / "numbers.npy", np.eye(3))
    np.save(tmp_path / "list.npy", np.array(["a", {}], dtype=object))
    for name, content, message in (
        ("cut", former[:-4], "damaged (RuntimeError)"),
        ("cut", former[:300], "refers to 'collect.', which is not allowed"),
        ("flipped", zipped[:-400] + bytes([zipped[-400] ^ 1]) + zipped[-399:], "damaged ("),
        ("numbers", (tmp_path / "numbers.npy").read_bytes(), "an array of float64 of shape [3, 3]"),
        ("list", (tmp_path / "list.npy").read_bytes(), "an array of object of shape [2]"),
        ("header", b"\x93NUMPY\x01\0\xff\xff", "damaged (ValueError)"),
        ("version", b"\x93NUMPY\x02\0\xff\xff", "unknown version"),
        ("large", b"PK\x03\x04" + bytes(MAX_BYTES), "too large, expected a table of at most 16 MiB"),
        ("noise", b"\xff\xfe\x00", "not UTF-8 text"),
        ("text", b"hello", "line 1: header"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_split_table(path)
        assert str(error.value).startswith(f"{path}: ") and message in str(error.value), (name, error.value)
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_split_table(path)


def test_names_that_do_not_fit(tmp_path):
    path = saved(tmp_path / "x.pth", {"labels_weights": torch.tensor(ROWS).float()})
    with pytest.raises(DataError, match="x.pth: 4 rows, expected 2, one for each image"):
        read_split_table(path, ids=["a", "b"])
    for tasks in (["semseg"], ["semseg", "depth", "depth"], []):
        with pytest.raises(DataError, match="x.pth: 3 columns without names, expected one task each, got"):
            read_split_table(path, tasks=tasks)
    path = save_npy(tmp_path / "x.npy", by_task(), 2)
    with pytest.raises(DataError, match="x.npy: no column for task 'depth'"):
        read_split_table(path, tasks=["depth"])
    with pytest.raises(DataError, match="x.npy: no row for 1 of 1 images, the first is 'b'"):
        read_split_table(path, ids=["b"])
