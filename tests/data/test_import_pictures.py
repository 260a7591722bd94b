"""Formats whose labels are pictures: VOC masks and Hugging Face columns."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.errors import DataError

from .annotations import CLASSES, HEIGHT, WIDTH, expected, png, write_huggingface, write_images, write_voc
from .test_import_folder import import_made, labels

# VOC


def test_voc_as_distributed(tmp_path):
    """Palette pictures and lists, no labelmap.txt: the classes of PASCAL VOC, 255 between objects."""
    write_voc(tmp_path)
    (tmp_path / "labelmap.txt").unlink()
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, ids in (("train", "a\nb\n"), ("val", "c\n"), ("trainval", "a\nb\nc\n")):
        (lists / f"{name}.txt").write_text(ids)
    wanted = np.array([0, 15, 255], np.uint8)[expected("a")]
    palette = np.zeros((256, 3), np.uint8)
    palette[15], palette[255] = (192, 128, 128), (224, 224, 192)
    picture = Image.fromarray(wanted)
    picture.putpalette(palette.ravel().tolist())
    picture.save(tmp_path / "SegmentationClass" / "a.png")
    Image.fromarray(wanted).save(tmp_path / "SegmentationClass" / "b.png")  # grey
    Image.fromarray(palette[wanted]).save(tmp_path / "SegmentationClass" / "c.png")
    made = import_made("voc", tmp_path, tmp_path / "out", lambda root: {"source": root})
    found = labels(tmp_path / "out") | labels(tmp_path / "out", "val")
    for name in "abc":
        np.testing.assert_array_equal(found[name][0], wanted, err_msg=name)
    assert Folder(tmp_path / "out", "val").tasks["semseg"].classes[15] == "person"
    assert "left out: 1 image file that no list names (d.png)" in made.notes
    made = import_made("voc", tmp_path, tmp_path / "one", lambda root: {"source": root}, splits=["val"])
    assert list(made.splits) == ["val"]


def test_voc_values_and_classes(tmp_path):
    """Grey masks of 0, 1, 2, whose classes are given, or which labelmap.txt lists in their order."""
    for given in (True, False):
        root = tmp_path / str(given)
        write_voc(root)
        for path in (root / "SegmentationClass").iterdir():
            path.write_bytes(png(expected(path.stem)))
        if given:
            (root / "labelmap.txt").unlink()
        options = {"classes": CLASSES} if given else {}
        import_made("voc", root, tmp_path / f"out-{given}", lambda root: {"source": root}, **options)
        np.testing.assert_array_equal(labels(tmp_path / f"out-{given}")["a"][0], expected("a"))


def import_masks(root, masks, labelmap=None, **options):
    """Import pictures as the masks of a, b, ..."""
    made = write_voc(root)
    (root / "labelmap.txt").unlink()
    if labelmap is not None:
        (root / "labelmap.txt").write_text(labelmap)
    for name, mask in zip("abc", masks, strict=False):
        mask.save(root / "SegmentationClass" / f"{name}.png")
    for name in "abc"[len(masks) :]:
        (root / "SegmentationClass" / f"{name}.png").unlink()
    return import_made("voc", root, root / "out", lambda _: made, **options)


def stripes(*values, palette=()):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for n, value in enumerate(values):
        mask[n] = value
    picture = Image.fromarray(mask)
    if palette:
        picture.putpalette(palette)
    return picture


@pytest.mark.parametrize(
    ("masks", "labelmap", "message"),
    [
        # by colour, one mask would say that 255 is a crack, by value another one that it means nothing
        ([stripes(1, 255), stripes(255)], "background:0,0,0\ncrack:255,255,255", r"colour \(1, 1, 1\) of no"),
        # the colour of the value 1 is that of label 2, and 2 has the colour of none
        ([stripes(1, palette=[0, 0, 0, 128, 0, 0, 0, 128, 0]), stripes(2, palette=[0] * 6 + [0, 128, 0])],
         "background:0,0,0\nroad:10,10,10\ncar:128,0,0", r"colour \(0, 128, 0\) of no label"),
        ([stripes(1, palette=[0, 0, 0, 0, 128, 0])], None, "gives values the colours of other labels"),
        ([stripes(128)], None, "no label has the value 128"),  # which is also the grey of cars
    ],
)  # fmt: skip
def test_voc_masks_with_two_meanings(tmp_path, masks, labelmap, message):
    """Whether values or colours count does not depend on the pixels that a mask happens to have."""
    with pytest.raises(DataError, match=message):
        import_masks(tmp_path / "s", masks, labelmap)


def test_voc_black_and_white(tmp_path):
    """Grey masks of a list of greys, and any palette, which only is to be looked at."""
    import_masks(tmp_path / "s", [stripes(255)], "background:0,0,0\ncrack:255,255,255")
    assert labels(tmp_path / "s" / "out")["a"][0, 0].unique().tolist() == [1]
    masks = [stripes(0, 1, palette=[9, 9, 9, 200, 0, 0])]
    import_masks(tmp_path / "t", masks, classes=("sky", "road"))
    assert labels(tmp_path / "t" / "out")["a"][0, :2, 0].tolist() == [0, 1]


def test_voc_lists_and_files_that_do_not_count(tmp_path):
    write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\n")
    with Image.open(tmp_path / "SegmentationClass" / "a.png") as mask:
        mask.convert("RGB").save(tmp_path / "SegmentationClass" / "a.jpg")
    (tmp_path / "SegmentationClass" / "a.png").unlink()
    made = import_made("voc", tmp_path, tmp_path / "out", lambda root: {"source": root})
    found = labels(tmp_path / "out", "train")
    assert list(found) == ["a", "b"] and found["a"] is None
    assert "left out: 2 masks without an image, or not PNG (a.jpg, c.png)" in made.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car:1,2::", "line 1: 'car:1,2::', expected a label and its colour"),
        ("car:1,2,300::", "expected a label and its colour"),
        ("car:1,2,3::\ntree:1,2,3::", "line 2: a second label has the colour 1,2,3"),
        ("car:1,2,3::\ncar:1,2,4::", "line 2: a second label is called 'car'"),
        ("# nothing", "no labels"),
        ("car:0,0,0::\ntree:10,120,30::", "a.png: colour (200, 0, 60) of no label"),
    ],
)
def test_voc_damage(tmp_path, text, message):
    write_voc(tmp_path)
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError) as error:
        import_made("voc", tmp_path, tmp_path / "out", lambda root: {"source": root})
    assert message in str(error.value)


# Hugging Face


def test_huggingface_parquet_and_splits(tmp_path):
    """Parquet files, and a dictionary of splits, of which "validation" is called val."""
    import datasets

    made = write_huggingface(tmp_path / "s")
    table = datasets.load_from_disk(str(tmp_path / "s"))
    plain = {
        name: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        for name in ("photo", "label")
    }
    table.cast(datasets.Features({**table.features, **plain})).to_parquet(str(tmp_path / "one.parquet"))
    import_made(
        "huggingface", tmp_path, tmp_path / "out", lambda _: made | {"source": tmp_path / "one.parquet"}
    )
    both = datasets.DatasetDict({"train": table, "validation": table.select([1, 0])})
    both.save_to_disk(str(tmp_path / "both"))
    import_made("huggingface", tmp_path, tmp_path / "two", lambda _: made | {"source": tmp_path / "both"})
    found = labels(tmp_path / "two", "val")
    np.testing.assert_array_equal(found["validation/000001"][0], expected("a"))
    for out in ("out", "two"):
        assert labels(tmp_path / out, task="depth")["train/000001"].unique().tolist() == [1.5]
        assert labels(tmp_path / out, task="depth")["train/000003"] is None


def test_huggingface_kinds_and_scale(tmp_path):
    import datasets

    write_images(tmp_path / "images")
    deep = Image.fromarray(np.full((HEIGHT, WIDTH), 1500, np.uint16))
    mask = Image.fromarray((expected("a") > 0).astype(np.uint8))
    rows = {"image": [Image.open(tmp_path / "images/a.png")], "deep": [deep], "mask": [mask], "note": ["x"]}
    datasets.Dataset.from_dict(rows).cast_column("deep", datasets.Image()).save_to_disk(str(tmp_path / "s"))
    columns = {"depth": "deep", "cracks:binary": "mask"}
    made = {"source": tmp_path / "s", "map": columns, "scale": {"depth": 0.5}}
    import_made("huggingface", tmp_path, tmp_path / "out", lambda _: made)
    assert labels(tmp_path / "out", task="depth")["row/000000"].unique().tolist() == [750]
    np.testing.assert_array_equal(labels(tmp_path / "out", task="cracks")["row/000000"][0], expected("a") > 0)
    with pytest.raises(DataError, match="set --scale depth=UNITS_PER_STEP"):
        import_made("huggingface", tmp_path, tmp_path / "other", lambda _: made | {"scale": {}})
    with pytest.raises(DataError, match="column 'note' holds .*, expected images"):
        bad = made | {"map": {"image": "note", **columns}}
        import_made("huggingface", tmp_path, tmp_path / "other", lambda _: bad)
    with pytest.raises(DataError, match=r"row 0, column 'note'"):
        bad = made | {"map": {"depth": "note"}, "scale": {}}
        import_made("huggingface", tmp_path, tmp_path / "third", lambda _: bad)
