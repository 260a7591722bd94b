"""What labels mean: which stored value is which class or number, which names belong together."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.data.folder.check import check_dataset
from dmtl.data.folder.check_files import check_files
from dmtl.data.folder.dataset import Folder
from dmtl.data.folder.description import read_description
from dmtl.data.folder.write import export_folder
from dmtl.errors import DataError

VOC = {"sky": [0, 0, 0], "road": [128, 0, 0], "ignore": [224, 224, 192]}
CLASSES = {"kind": "classes", "classes": ["sky", "road"]}


def write(root: Path, tasks: dict | str, labels: dict[str, object], count: int = 2) -> Folder:
    """A data set of `count` images; labels: path below the folder -> array or Pillow image."""
    ids = [f"i{number}" for number in range(count)]
    for number, id in enumerate(ids):
        labels = {f"images/{id}.png": np.full((4, 6, 3), 9 * number, np.uint8), **labels}
    for name, content in labels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, content)
        else:
            (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)
    (root / "splits").mkdir(exist_ok=True)
    (root / "splits" / "train.txt").write_text("\n".join(ids))
    text = tasks if isinstance(tasks, str) else yaml.safe_dump({"name": "x", "tasks": tasks})
    (root / "dataset.yaml").write_text(text)
    return Folder(root, "train")


def rows(*values: int, dtype=np.uint8) -> np.ndarray:
    """[4, 6] with these values in turn."""
    return np.resize(np.array(values, dtype), (4, 6))


def read(data: Folder, task: str, index: int = 0) -> list:
    """The first row of a label."""
    return data.read(index, [task]).labels[task][0, 0].tolist()


@pytest.mark.parametrize(
    ("values", "stored", "expected"),
    [
        ({0: 0, 255: 1}, [0, 255], [0, 1]),
        ({1: 0, 2: 1}, [1, 2, 255], [0, 1, 255]),
        ({0: "sky", 7: "road", 254: "ignore", 255: None}, [0, 7, 254, 255], [0, 1, 255, 255]),
        ({"sky": 3, "road": [4, 5]}, [3, 4, 5], [0, 1, 1]),
        ([10, 20], [10, 20], [0, 1]),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_stored_values_become_ids(tmp_path, values, stored, expected, suffix):
    data = write(tmp_path, {"s": CLASSES | {"values": values}}, {f"s/i0{suffix}": rows(*stored)})
    assert read(data, "s")[: len(stored)] == expected
    export_folder(data, tmp_path / "copy")
    copied = Folder(tmp_path / "copy", "train")
    assert read(copied, "s") == read(data, "s") and copied.tasks == data.tasks
    assert copied.definition("s") != data.definition("s")  # whose ids are stored otherwise


def test_wide_negative_and_boolean_values(tmp_path):
    labels = {"s/i0.npy": rows(-1, 1000, dtype=np.int32), "s/i1.png": rows(1000, 7, dtype=np.uint16)}
    values = {-1: "ignore", 1000: 1, 7: 0}
    data = write(tmp_path, {"s": CLASSES | {"values": values}}, labels)
    assert read(data, "s")[:2] == [255, 1] and read(data, "s", 1)[:2] == [1, 0]
    tasks = "tasks: {m: {kind: binary, values: {0: yes, 1: no}}}"
    data = write(tmp_path / "b", tasks, {"m/i0.npy": rows(0, 1, dtype=bool)})
    assert read(data, "m")[:2] == [1, 0]


def palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    "colors",
    [
        VOC,
        {"sky": "#000000", "road": "#800000", "ignore": "#E0E0C0"},
        {"#000000": 0, "#800000": "road", "#e0e0c0": 255},
        {0: [[0, 0, 0]], 1: [[128, 0, 0], [1, 1, 1]], 255: [[224, 224, 192]]},
    ],
)
@pytest.mark.parametrize("kind", ["rgb", "palette", "tiff", "npy"])
def test_colours_become_ids(tmp_path, colors, kind):
    pixels = np.resize(np.array(list(VOC.values()), np.uint8), (4, 6, 3))
    image = Image.fromarray(pixels)
    name = {"tiff": "s/i0.tif", "npy": "s/i0.npy"}.get(kind, "s/i0.png")
    content = {"palette": palette(image), "npy": pixels}.get(kind, image)
    data = write(tmp_path, {"s": CLASSES | {"colors": colors}}, {name: content})
    assert read(data, "s") == [0, 1, 255, 0, 1, 255]


def test_a_list_of_colours_and_keys_that_are_lists(tmp_path):
    labels = {"s/i0.png": palette(Image.fromarray(np.full((4, 6, 3), (0, 0, 128), np.uint8)))}
    for colors in ("[[1, 2, 3], [0, 0, 128]]", "{[1, 2, 3]: sky, [0, 0, 128]: road}"):
        data = write(
            tmp_path, f"tasks: {{s: {{kind: classes, classes: [sky, road], colors: {colors}}}}}", labels
        )
        assert read(data, "s") == [1] * 6


@pytest.mark.parametrize(
    ("options", "label", "message"),
    [
        (
            {"values": {0: 0, 255: 1}},
            rows(0, 7, 9),
            r"i0.png: value 7, 9 in 16 pixels, expected 0, 255 as `val",
        ),
        ({"colors": VOC}, rows(1), "i0.png: colour #010101 in 24 pixels, expected #......, "),
        ({}, np.zeros((4, 6, 3), np.uint8), "i0.png: .*or `colors:` in dataset.yaml"),
    ],
)
def test_values_that_nothing_says_are_refused(tmp_path, options, label, message):
    data = write(tmp_path, {"s": CLASSES | options}, {"s/i0.png": label})
    with pytest.raises(DataError, match=message):
        data.read(0)
    assert any("i0.png" in problem.where for problem in check_dataset(data))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (CLASSES | {"values": {0: 0, 1: 2}}, "values names the class 2, expected 0 to 1, a name"),
        (CLASSES | {"values": {0: "rod"}}, "values names the class 'rod'"),
        (CLASSES | {"values": {}}, "values is empty"),
        (CLASSES | {"values": {0.5: 0}}, "values names the class 0.5|expected whole numbers"),
        (CLASSES | {"values": [1, 2, 3]}, "values lists 3 entries, expected 2"),
        (CLASSES | {"values": {"sky": 1, "road": 1}}, "values gives 1 to two classes"),
        (CLASSES | {"values": {0: 0}, "colors": VOC}, "either values or colors"),
        (CLASSES | {"colors": {"sky": [0, 0, 256]}}, r"expected \[r, g, b\]"),
        (CLASSES | {"scale": 0.5}, "scale does not apply to files of kind classes"),
        ({"kind": "binary", "unknown": 3}, "unknown does not apply to files of kind binary"),
        ({"kind": "scalar", "values": {0: 1}}, "values does not apply to files of kind scalar"),
        ({"kind": "unit_vector", "scale": 2}, "scale does not apply to files of kind unit_vector"),
        ({"kind": "unit_vector", "ignore": 0}, "ignore must be outside -1..1"),
        ({"kind": "scalar", "scale": "big"}, "scale is 'big', expected a number"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, task, message):
    with pytest.raises(DataError, match=f"^{tmp_path}/dataset.yaml: task 's'.*({message})"):
        write(tmp_path, {"s": task}, {})


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_scale_and_unknown_hold_for_whole_numbers_in_every_file(tmp_path, dtype):
    """0 is the mark of codes alone, unless `unknown` names another; negative numbers are numbers."""
    values = rows(0, 1000, 65535, dtype=dtype)
    labels = {"d/i0.npy": values, "d/i1.png": values.astype(np.uint16), "d/i2.tif": values.astype(np.uint16)}
    data = write(tmp_path / "a", {"d": {"kind": "scalar", "scale": 0.001, "unknown": 65535}}, labels, 3)
    for index in range(3):
        assert read(data, "d", index)[:2] == pytest.approx([0, 1])
        label = data.read(index).labels["d"]
        assert data.tasks["d"].valid(label)[0, 0, :3].tolist() == [True, True, False]
    data = write(tmp_path / "b", {"d": {"kind": "scalar", "scale": 0.001}}, labels, 3)
    valid = [data.tasks["d"].valid(data.read(index).labels["d"])[0, 0, 0].item() for index in range(3)]
    assert valid == [True, False, False]


def test_floats_are_in_their_unit_and_reported_next_to_a_scale(tmp_path):
    floats = rows(101, 102, dtype=np.float32)
    labels = {"d/i0.npy": floats, "d/i1.tif": floats, "d/i2.npy": floats.astype(np.float64)}
    labels |= {"d/i3.png": rows(1000, 2000, dtype=np.uint16)}
    for options, reported in (({"scale": 0.001}, True), ({"unknown": 102}, False)):
        tasks = {"d": {"kind": "scalar", **options}}
        data = write(tmp_path / str(reported), tasks, labels, 4 if reported else 3)
        found = [read(data, "d", index)[0] for index in range(len(data))]
        assert found == pytest.approx([101, 101, 101, 1][: len(data)])
        problems = [problem for problem in check_dataset(data) if problem.where == "d"]
        assert [problem.is_fault for problem in problems] == [False] * reported
        assert all("3 of its 4 labels are files of floats" in problem.what for problem in problems)


@pytest.mark.parametrize("name", ["elevation", "depth"])
@pytest.mark.parametrize("suffix", [".png", ".npy", ".tif"])
def test_numbers_have_no_magic_value(tmp_path, name, suffix):
    options = {"kind": "scalar", "scale": 1}
    data = write(tmp_path, {name: options}, {f"{name}/i0{suffix}": rows(254, 255, 256, dtype=np.uint16)})
    label = data.read(0).labels[name]
    assert data.tasks[name].valid(label).all()
    assert read(data, name)[:3] == pytest.approx([254, 255, 256], rel=1e-7)  # float32
    data = write(tmp_path, {name: options | {"ignore": 254}}, {})
    assert data.tasks[name].valid(data.read(0).labels[name])[0, 0, :3].tolist() == [False, True, True]


def test_numbers_in_yaml_are_those_that_were_meant(tmp_path):
    text = "tasks: {d: {kind: scalar, scale: 1e-3, weight: 5E-1, unknown: -1e3, low: .5, high: +1e2}}"
    data = write(tmp_path, text, {})
    definition = data.definition("d")
    found = [definition[key] for key in ("scale", "weight", "unknown", "low", "high")]
    assert found == [0.001, 0.5, -1000, 0.5, 100]
    text = (
        "tasks: {s: {kind: classes, classes: [a, b], values: {010: 0, 08: 1}}}\nevaluation: {max_dist: 75e-4}"
    )
    assert write(tmp_path, text, {}).definition("s")["values"] == {10: 0, 8: 1, 255: 255}
    assert read_description(tmp_path)["evaluation"] == {"max_dist": 0.0075}
    with pytest.raises(DataError, match="scale is '1e-3', expected a number"):
        write(tmp_path, "tasks: {d: {kind: scalar, scale: '1e-3'}}", {})
    with pytest.raises(DataError, match="line 1: duplicate key 0"):
        write(tmp_path, "tasks: {s: {kind: classes, classes: [a, b], values: {0: 0, 0: 1}}}", {})


@pytest.mark.parametrize(
    ("tasks", "pixels", "kind", "message"),
    [
        (
            CLASSES,
            [0, 255],
            "label",
            "class 1 (road) occurs in none of its 2 labels, while 255 (ignored) does",
        ),
        (CLASSES, [1], "label", "class 0 (sky) occurs in none of its 2 labels"),
        ({"kind": "binary"}, [0, 255], "label", "class 1 (yes) occurs in none of its 2 labels, while 255"),
        (
            {"kind": "classes", "classes": 4},
            [0, 255],
            "label",
            "only class 0 (class 0) occurs in its 2 labels",
        ),
        (
            {"kind": "classes", "classes": 4},
            [1, 2],
            "class",
            "classes 0 (class 0), 3 (class 3) occur in none",
        ),
        (CLASSES, [255], "label", "every pixel of its 2 labels is ignored"),
        (CLASSES | {"values": {0: 0, 255: 1}}, [0, 255], None, ""),
    ],
)
def test_labels_without_a_class_are_reported(tmp_path, tasks, pixels, kind, message):
    data = write(tmp_path, {"s": tasks}, {f"s/i{n}.png": rows(*pixels) for n in range(2)})
    found = [problem for problem in check_dataset(data) if problem.where == "s"]
    assert [problem.kind for problem in found] == ([kind] if kind else [])
    assert all(problem.what.startswith(message) for problem in found)
    assert [problem.is_fault for problem in found] == ([kind == "label"] if kind else [])


@pytest.mark.parametrize(
    ("tasks", "pixels", "remedy"),
    [
        (CLASSES, [[0, 1], [0, 255], [0, 255]], "if 255 means 'road', write `values: {0: 0, 1: 1, 255: 1}`"),
        (
            {"kind": "binary"},
            [[0, 1, 255], [0, 255], [0, 255]],
            "if 255 means 'yes', write `values: {0: 0, 1: 1, 255: 1}`",
        ),
        (
            CLASSES | {"ignore": 9},
            [[0, 1], [1, 9], [1, 9]],
            "if 9 means 'road', write `values: {0: 0, 1: 1, 9: 1}`",
        ),
        (CLASSES, [[0, 1], [0, 1, 255]], None),
        ({"kind": "binary"}, [[0, 1], [0, 255]], None),  # some images have no positive pixel
        (CLASSES, [[0, 1], [0]], None),
        ({"kind": "classes", "classes": 3}, [[0, 1, 2], [0, 255]], None),
    ],
)
def test_masks_drawn_in_two_ways_are_reported(tmp_path, tasks, pixels, remedy):
    labels = {f"s/i{n}.png": rows(*each) for n, each in enumerate(pixels)}
    data = write(tmp_path, {"s": tasks}, labels, len(pixels))
    found = [problem for problem in check_dataset(data) if problem.where == "s"]
    assert [problem.is_fault for problem in found] == [False] * (remedy is not None)
    assert all(remedy in problem.what for problem in found)


@pytest.mark.parametrize(
    "names", ["[no, yes]", "[off, a]", "[1, 2]", "[~, a]", "[a, 1e3]", "[2001-01-01, a]"]
)
def test_names_that_yaml_reads_as_something_else_are_refused(tmp_path, names):
    with pytest.raises(DataError, match="classes must be a list .*quote what YAML reads otherwise"):
        write(tmp_path, f"tasks: {{s: {{kind: classes, classes: {names}}}}}", {})
    quoted = "['no', 'yes', 'off', '1', '~', '1e3']"
    data = write(tmp_path, f"tasks: {{s: {{kind: classes, classes: {quoted}}}}}", {})
    assert data.tasks["s"].classes == ("no", "yes", "off", "1", "~", "1e3")


def test_a_few_images_to_validate_on_may_show_one_class(tmp_path):
    write(tmp_path, {"s": CLASSES}, {"s/i0.png": rows(0, 255)})
    (tmp_path / "splits" / "train.txt").rename(tmp_path / "splits" / "val.txt")
    (problem,) = (problem for problem in check_dataset(Folder(tmp_path, "val")) if problem.where == "s")
    assert not problem.is_fault and "class 1 (road) occurs in none" in problem.what


def test_files_that_are_not_read_are_named(tmp_path):
    data = write(tmp_path, {"s": CLASSES}, {"s/i0.png": rows(0, 1), "s/i1_mask.png": rows(0, 1)})
    for name in ("i1.jpg", "i1.bmp", "i1.npz", "notes.txt", "i0", ".DS_Store", "Thumbs.db"):
        (tmp_path / "s" / name).write_bytes(b"x")
    (tmp_path / "images" / "i9.gif").write_bytes(b"x")
    found = {Path(p.where).name: p.kind for p in check_files(tmp_path)}
    unread = dict.fromkeys(["i1.jpg", "i1.bmp", "i1.npz", "notes.txt", "i0", "i9.gif"], "unread")
    assert found == {"i1_mask.png": "unlisted", **unread}
    assert data.unread("s") == ["i0", "i1.bmp", "i1.jpg", "i1.npz", "i1_mask.png", "notes.txt"]


@pytest.mark.parametrize(
    ("kind", "option", "near"),
    [("scalar", "scle", "scale"), ("scalar", "unknwon", "unknown"), ("binary", "vlaues", "values")],
)
def test_a_misspelt_option_gets_the_nearest_and_all_others(tmp_path, kind, option, near):
    every = {
        "scalar": "kind, weight, ignore, log, distance, inverse, score, low, high, scale, unknown",
        "binary": "kind, weight, ignore, thin, pos_weight, values, colors",
    }
    with pytest.raises(DataError) as error:
        write(tmp_path, {"s": {"kind": kind, option: 1}}, {})
    assert str(error.value) == (
        f"{tmp_path}/dataset.yaml: task 's': option must be one of {every[kind]}, "
        f"got {option!r} (did you mean {near!r}?)"
    )


@pytest.mark.parametrize(("task", "folder"), [("sal", "sall"), ("semsg", "semseg")])
def test_a_misspelt_folder_is_named(tmp_path, task, folder):
    labels = {f"{name}/i0.png": rows(0, 1) for name in (folder, "s", "contours", ".cache")}
    kinds = {task: {"kind": "binary"}, "s": CLASSES}
    data = write(tmp_path, yaml.safe_dump({"tasks": kinds, "boundaries": "contours"}), labels, count=1)
    missing, stray = check_files(tmp_path)
    assert str(missing) == f"{tmp_path / task}: no such folder (did you mean {folder!r}?)"
    assert str(stray) == f"{tmp_path / folder}: is not read, because no task in dataset.yaml has this name"
    assert missing.is_fault and not stray.is_fault
    assert data.missing(task) == [str(missing)] and data.missing("s") == []


def test_labels_of_images_that_are_left_out_on_purpose_are_no_mistake(tmp_path):
    data = write(tmp_path, {"s": CLASSES}, {f"s/i{n}.png": rows(0, 1) for n in range(2)})
    (tmp_path / "splits" / "train.txt").write_text("i0\n")
    assert data.unread("s") == []


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["café", "Straße", "naïve/Ångström", "が"])
def test_names_are_compared_in_one_normal_form(tmp_path, form, name):
    """Images, labels, lists and tables may each come from another file system."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    this, that = (unicodedata.normalize(each, name) for each in (form, other))
    tasks = {"s": CLASSES}
    write(tmp_path, tasks, {f"images/{this}.png": np.zeros((4, 6, 3), np.uint8), f"s/{that}.png": rows(0, 1)})
    (tmp_path / "splits" / "train.txt").write_text(that)
    description = {"name": "x", "tasks": tasks, "labels": "labels.csv"}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(description))
    (tmp_path / "labels.csv").write_text(f"id,s\n{this},1\n")
    data = Folder(tmp_path, "train")
    assert data.available().matrix.all() and list(data.read(0).labels) == ["s"]
    assert data.available().subset([this]).matrix.all()
    assert {p.kind for p in check_files(tmp_path)} <= {"unlisted"}  # i0 and i1 alone
    assert not any(name in unicodedata.normalize("NFC", p.where) for p in check_files(tmp_path))


def test_two_files_of_one_name_are_refused(tmp_path):
    labels = {f"s/{unicodedata.normalize(form, 'é')}.png": rows(0, 1) for form in ("NFC", "NFD")}
    write(tmp_path, {"s": CLASSES}, {**labels, "images/é.png": np.zeros((4, 6, 3), np.uint8)})
    (tmp_path / "splits" / "train.txt").write_text("é")
    with pytest.raises(DataError, match="expected one file per id"):
        Folder(tmp_path, "train")


def test_names_that_look_like_numbers_survive_an_export(tmp_path):
    names = ["1e3", "08", "0.5", "no", "12"]
    text = f"tasks: {{s: {{kind: classes, classes: {names}}}}}"
    data = write(tmp_path, text, {"s/i0.png": rows(0, 4)})
    export_folder(data, tmp_path / "copy")
    assert Folder(tmp_path / "copy", "train").tasks["s"].classes == tuple(names)


def test_labels_are_tensors_of_their_kind(tmp_path):
    data = write(tmp_path, {"s": CLASSES | {"values": {0: 0, 255: 1}}}, {"s/i0.png": rows(0, 255)})
    label = data.read(0).labels["s"]
    assert label.dtype == torch.uint8 and label.shape == (1, 4, 6)
