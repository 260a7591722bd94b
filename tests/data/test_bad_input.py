"""Whatever is wrong with a data set ends in a DataError that names the file."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dmtl.data import images
from dmtl.data.folder.dataset import Folder
from dmtl.data.folder.paths import inner_path
from dmtl.errors import DataError
from tests.data.conftest import HEIGHT, WIDTH, arrays, describe


def encoded(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be large and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IDAT"
    )


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GREY = np.zeros((HEIGHT, WIDTH), np.uint8)
BAD_FILES = [
    ("images/a.png", encoded(arrays(0)["images"])[:900], "damaged or truncated"),
    ("images/a.png", b"no image at all", "not an image, expected an image (JPEG, PNG, "),
    ("images/a.png", encoded(arrays(0)["images"], "GIF"), "not an image, expected an image (JPEG, PNG, "),
    ("images/a.png", b"", "not an image"),
    ("images/a.png", png_header(9000, 9000), "too large (9000x9000), expected at most 64 million pixels"),
    ("images/a.png", png_header(60000, 60000), "too large"),
    (
        "images/a.png",
        encoded(GREY.astype(np.float32), "TIFF"),
        "pixels of mode F, expected grey, RGB or CMYK",
    ),
    ("semseg/a.png", encoded(GREY[:-1]), "label of 32x23 pixels, expected 32x24 like images/a.png"),
    ("semseg/a.png", encoded(GREY + 7), "value 7 in 768 pixels, expected 0 to 2, or 255 (ignore)"),
    ("semseg/a.png", encoded(arrays(0)["images"]), "expected one value per pixel"),
    ("semseg/a.png", encoded(arrays(0)["depth"]), "uint16 values, expected 8-bit class ids"),
    ("edge/a.png", encoded(GREY + 2), "value 2 in 768 pixels, expected 0 to 1, or 255"),
    ("normals/a.png", encoded(GREY), "expected an RGB PNG"),
    ("normals/a.png", encoded(np.zeros((HEIGHT, WIDTH, 4), np.uint8)), "pixels of mode RGBA"),
    ("semseg/a.npy", npy(GREY.astype(float)), "float64 values, expected 8-bit class ids"),
    ("semseg/a.npy", npy(GREY.astype(int) - 1), "value -1 in 768 pixels"),
    ("semseg/a.npy", npy(np.array({"a": 1})), "holds object"),
    ("semseg/a.npy", npy(GREY)[:-5], "its header claims 768 bytes of data, but the file has 763"),
    (
        "semseg/a.npy",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)"
        + b", }".ljust(49)
        + b"\n",
        "its header claims 8000000000000 bytes",
    ),
    ("semseg/a.npy", b"text", "not a readable array"),
    (
        "normals/a.npy",
        npy(np.zeros((HEIGHT, WIDTH, 3), int)),
        "int64 values of shape [24, 32, 3], expected an RGB PNG",
    ),
    ("depth/a.npy", npy(np.zeros((HEIGHT, WIDTH, 2))), "expected one value per pixel"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "content", "message"), BAD_FILES, ids=[f"{n}-{m[:20]}" for n, _, m in BAD_FILES]
)
def test_bad_files(folder, name, content, message):
    path = folder / name
    path.with_suffix(".png").unlink(missing_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        Folder(folder, "val").read(0)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\nb\nx1\nx2\n", "2 of 4 ids have no image, the first is 'x1', expected images/x1.jpg"),
        ("a\nb\na\n", "line 3: id 'a' is also on line 1"),
        ("\n\n", "empty, expected one id per line"),
        ("../a\n", "line 1: '../a', expected a relative path inside the data set"),
        ("/etc/passwd\n", "line 1: '/etc/passwd'"),
        ("a/../../b\n", "line 1: "),
        ("C:\\x\n", "line 1: "),
    ],
)
def test_bad_splits(folder, lines, message):
    (folder / "splits" / "new.txt").write_text(lines)
    with pytest.raises(DataError, match="new.txt: ") as error:
        Folder(folder, "new")
    assert message in str(error.value)


def test_unknown_names_come_with_the_nearest(folder, tmp_path):
    with pytest.raises(DataError, match="unknown split 'trian', did you mean 'train'. available: train, val"):
        Folder(folder, "trian")
    with pytest.raises(
        DataError, match="unknown task 'semsge', did you mean 'semseg'. available: cracks, depth"
    ):
        Folder(folder, "train", tasks=["semsge"])
    with pytest.raises(DataError, match="unknown task 'norms', did you mean 'normals'"):
        Folder(folder, "train").read(0, ["norms"])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        Folder(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "no tasks"),
        ({"tasks": ["semseg"]}, "no tasks"),
        ({"task": {}}, "unknown key 'task', did you mean 'tasks'"),
        ({"tasks": {"mine": {}}}, "kind must be given"),
        ({"tasks": {"mine": None}}, "task 'mine' is None, expected a mapping"),
        ({"tasks": {"mine": {"kind": "klasses"}}}, "kind must be one of"),
        ({"tasks": {"mine": {"kind": "classes"}}}, "classes must be a list"),
        ({"tasks": {"mine": {"kind": "binary", "wieght": 2}}}, "did you mean 'weight'"),
        ({"tasks": {"mine": {"kind": "binary", "name": "x"}}}, "dataset.yaml: "),
        ({"tasks": {"mine": {"kind": "binary", "ignore": 300}}}, "ignore is 300"),
        ({"tasks": {"mine": {"kind": "binary", "ignore": 1}}}, "ignore is 1"),
        ({"tasks": {"mine": {"kind": "classes", "classes": 300, "ignore": -1}}}, "ignore is -1"),
        ({"tasks": {"depth": {"kind": "scalar", "scale": "big"}}}, "scale is 'big', expected a number"),
        ({"tasks": {"depth": {"kind": "scalar", "scale": -1}}}, "scale is -1, expected a positive number"),
        ({"tasks": {"../x": {"kind": "binary"}}}, "name of a task"),
        ({"tasks": {"images": {"kind": "binary"}}}, "cannot be called 'images'"),
        ({"labels": 7}, "labels is 7"),
    ],
)
def test_bad_descriptions(folder, changes, message):
    describe(folder, **changes)
    with pytest.raises(DataError, match="dataset.yaml: ") as error:
        Folder(folder, "train")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text", ["a: [", "!!python/object/apply:os.system ['true']", "tasks: *x", "\x00", "2024-99-99"]
)
def test_yaml_that_is_not_plain_data(folder, text):
    (folder / "dataset.yaml").write_text(text)
    with pytest.raises(DataError, match="dataset.yaml: "):
        Folder(folder, "train")


def test_a_png_of_numbers_needs_a_unit(folder):
    describe(folder, tasks={"depth": {"kind": "scalar"}})
    with pytest.raises(DataError, match=r"b.png: whole numbers without a unit, expected `scale:`"):
        Folder(folder, "train").read(1)


def test_two_files_for_one_id(folder):
    Image.fromarray(arrays(0)["images"]).save(folder / "images" / "a.jpg")
    with pytest.raises(DataError, match="both a.jpg and a.png, expected one file per id"):
        Folder(folder, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "a,0,1,1,1,1\nb,1,1,1,1,1\nc/d,1,1,1,1,1\n",
            "lists 1 labels of semseg that do not exist, the first is 'b'",
        ),
        (
            "a,0,1,1,1,1\n",
            "no row for 2 of 3 images, the first is 'b', expected one row per image",
        ),
    ],
)
def test_a_table_must_agree_with_the_files(folder, rows, message):
    describe(folder, labels="labels.csv")
    (folder / "labels.csv").write_text("id,depth,semseg,edge,normals,cracks\n" + rows)
    with pytest.raises(DataError, match="labels.csv: ") as error:
        Folder(folder, "train")
    assert message in str(error.value)


def test_a_table_must_have_every_task_and_stay_inside(folder):
    describe(folder, labels="labels.csv")
    (folder / "labels.csv").write_text("id,semseg\na,1\nb,0\nc/d,1\n")
    with pytest.raises(DataError, match="labels.csv: no column for task 'cracks'"):
        Folder(folder, "train")
    describe(folder, labels="../labels.csv")
    with pytest.raises(DataError, match="relative path"):
        Folder(folder, "train")


@given(
    st.lists(st.sampled_from(["..", ".", "a", "", "/", "\\", "C:", "\0", "b.c", "ä"]), max_size=6),
    st.booleans(),
)
@settings(max_examples=300)
def test_no_path_leaves_the_folder(parts, joined):
    name = ("/" if joined else "").join(parts)
    try:
        inner_path(name, "here")
    except DataError:
        return
    assert Path("/root", name).resolve().is_relative_to("/root") and Path("/root", name).resolve() != Path(
        "/root"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "description: [&a [x, x], &b [*a, *a]]\ntasks: {sal: *b}",
            "a reference with *, expected the value itself",
        ),
        ("description: [&a {x: 1}]\ntasks: {<<: [*a, *a]}", "a reference with *, expected the value itself"),
        ("tasks: {mine: {kind: classes, classes: 99999999999}}", "classes must be at most 65536"),
        ("tasks: {depth: {scale: 1" + "0" * 400 + "}}", "expected a number"),
        ("tasks: {sal: {weight: 1" + "0" * 400 + "}}", "int too large"),
        ("# " + "x" * 200_000 + "\ntasks: {sal: {}}", "characters, expected at most 100000"),
        ("tasks: {sal: {weight: " + "x" * 5000 + "}}", "weight must be a finite number"),
        ("tasks: {mine: {kind: " + "x" * 5000 + "}}", "kind must be one of"),
        ("tasks: {sal: {" + "x" * 900 + ": 1}}", "option must be one of"),
        ("x" * 1000 + ": 1\ntasks: {sal: {}}", "unknown key 'xxx"),
        ("tasks: " + "[" * 60 + "\u0601A \u200f" + "[" * 60, "not readable YAML (while parsing"),
    ],
)
def test_descriptions_that_grow(folder, text, message):
    (folder / "dataset.yaml").write_text(text)
    with pytest.raises(DataError, match="dataset.yaml: ") as error:
        Folder(folder, "train")
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < len(str(folder)) + 400


def test_more_pixels_than_bytes_can_hold(tmp_path):
    """A complete PNG whose header was changed: a decoder would make up gigabytes of rows."""
    whole = encoded(arrays(0)["images"])
    size = struct.pack(">II", 15, 4_000_000)
    header = b"IHDR" + size + whole[24:29]
    (tmp_path / "x.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    for read in (images.read_image, images.read_label_image, images.image_size):
        with pytest.raises(DataError, match=f"x.png: 15x4000000 pixels in only {len(whole)} bytes"):
            read(tmp_path / "x.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_flat_images_are_no_bombs(tmp_path, mode, format):
    """The most that the formats can pack into a byte."""
    if format == "JPEG" and mode not in ("L", "RGB"):
        return
    Image.new(mode, (3000, 2000)).save(tmp_path / "x", format, **({"optimize": True} if format == "PNG" else
                                       {"quality": 1, "subsampling": 2, "progressive": True}))  # fmt: skip
    assert images.image_size(tmp_path / "x") == (2000, 3000)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFF0])
def test_a_length_is_not_believed(tmp_path, length):
    """A chunk, or a header, of gigabytes: none are asked for."""
    whole = encoded(arrays(0)["images"])
    (tmp_path / "x.png").write_bytes(whole[:-12] + struct.pack(">I", length) + b"tEXt" + bytes(50))
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", length) + b"{'descr': '|u1'")
    tracemalloc.start()
    try:
        for name, read in (("x.png", images.read_image), ("x.npy", images.read_npy)):
            try:
                read(tmp_path / name)
            except DataError as error:
                assert str(error).startswith(str(tmp_path / name)) and "Memory" not in str(error)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
