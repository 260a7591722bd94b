"""`import_folder`: every format gives the labels that its tool shows, and what is wrong has a name."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import yaml
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.data.images import read_image
from dmtl.data.imports import Options, import_folder
from dmtl.errors import ConfigError, DataError

from .annotations import (
    CLASSES,
    NAMES,
    WRITERS,
    corners,
    cvat_file,
    cvat_image,
    expected,
    labelme_file,
    labelme_shape,
    mapped,
    write_images,
    write_json,
)

BACKGROUND = ("coco", "labelme", "cvat", "label-studio")
MAPS = ("coco-panoptic", "coco-stuff")  # black pixels mean nothing
AMBIGUOUS = ("coco", "cvat")  # cannot say that an image is annotated and empty


def import_made(format, root, out, writer=None, **options):
    made = dict((writer or WRITERS[format])(root)) | options
    names = {"splits", "val", "skip_corrupt", "workers"}
    others = {name: made.pop(name) for name in names & made.keys()}
    return import_folder(format, made.pop("source"), out, Options(**made), **others)


def image_of(root, name):
    """The file of an image, which every writer puts into one of these folders."""
    files = (root / folder / f"{name}.png" for folder in ("images", "JPEGImages", "."))
    return next(path for path in files if path.exists())


def labels(out, split="train", task="semseg"):
    data = Folder(out, split, [task])
    return {id: data.read(n).labels.get(task) for n, id in enumerate(data.ids)}


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_gives_the_same_labels(tmp_path, format):
    made = import_made(format, tmp_path / "source", tmp_path / "out")
    description = yaml.safe_load((tmp_path / "out" / "dataset.yaml").read_text())
    classes = list(CLASSES[1:]) if format in MAPS else list(CLASSES)
    assert description["tasks"]["semseg"]["classes"] == classes
    assert description["name"] == "out"
    found = labels(tmp_path / "out")
    ids = {name: f"row/{n:06d}" if format == "huggingface" else name for n, name in enumerate(NAMES)}
    assert set(found) == set(ids.values())
    for name in NAMES[:3]:
        wanted = expected(name)
        if format in MAPS:
            wanted = np.array([255, 0, 1], np.uint8)[mapped(name)]
        if name == "c" and format in AMBIGUOUS:
            assert found[ids[name]] is None
        else:
            np.testing.assert_array_equal(found[ids[name]][0], wanted, err_msg=name)
    assert found[ids["d"]] is None
    missing = 2 if format in AMBIGUOUS else 1
    assert any(f"{missing} image" in note and "no label of semseg" in note for note in made.notes)
    assert made.splits["train"].images == 4


@pytest.mark.parametrize("format", ["labelme", "coco", "voc"])
def test_a_target_inside_the_source(tmp_path, format):
    """What was imported is not an input of the next import."""
    out = tmp_path / "s" / "out"
    made = WRITERS[format](tmp_path / "s")
    import_made(format, tmp_path, out, lambda _: made)
    import_made(format, tmp_path, tmp_path / "t", lambda _: made)
    assert sorted(labels(tmp_path / "t")) == list(NAMES)


def test_images_are_copied(tmp_path):
    """Byte for byte, from files and from cells."""
    for format in ("labelme", "huggingface"):
        import_made(format, tmp_path / format, tmp_path / f"{format}-out")
        source = tmp_path / ("labelme" if format == "labelme" else "huggingface-images") / "a.png"
        name = "a" if format == "labelme" else "row/000000"
        assert (tmp_path / f"{format}-out" / "images" / f"{name}.png").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("format", [*BACKGROUND, "voc"])
def test_labels_that_mean_nothing(tmp_path, format):
    import_made(format, tmp_path / "s", tmp_path / "out", ignore=("car",))
    wanted = np.array([0, 255, 1], np.uint8)[expected("a")]
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)


@pytest.mark.parametrize("format", BACKGROUND)
def test_labels_left_out(tmp_path, format):
    made = import_made(format, tmp_path / "s", tmp_path / "out", classes=("tree",))
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], expected("a") == 2)
    assert "left out: labels that --classes does not name: 'car' (1)" in made.notes


@pytest.mark.parametrize("format", MAPS)
def test_classes_in_another_order(tmp_path, format):
    import_made(format, tmp_path / "s", tmp_path / "out", classes=("tree", "car"))
    wanted = np.array([255, 1, 0], np.uint8)[expected("a")]
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)


@pytest.mark.parametrize("format", BACKGROUND)
def test_without_a_background(tmp_path, format):
    import_made(format, tmp_path / "s", tmp_path / "out", background="")
    wanted = np.array([255, 0, 1], np.uint8)[expected("a")]
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)


@pytest.mark.parametrize("format", AMBIGUOUS)
def test_images_that_were_looked_at(tmp_path, format):
    import_made(format, tmp_path / "s", tmp_path / "out", empty=True)
    assert (labels(tmp_path / "out")["d"][0] == 0).all()


@pytest.mark.parametrize("format", [f for f in WRITERS if f != "huggingface"])
def test_a_label_of_another_size(tmp_path, format):
    """An image that was exchanged after it was annotated."""
    made = WRITERS[format](tmp_path / "s")
    image = image_of(tmp_path / "s", "b")
    Image.new("RGB", (32, 24)).save(image)
    with pytest.raises(DataError, match="drawn on 64x48 pixels, expected the 32x24 of .*b.png"):
        import_made(format, tmp_path, tmp_path / "out", lambda root: made)
    found = import_made(format, tmp_path, tmp_path / "other", lambda root: made, skip_corrupt=1)
    assert found.splits["train"].images == 3 and len(found.splits["train"].skipped) == 1


@pytest.mark.parametrize("format", ["coco", "labelme", "cvat", "label-studio", "voc"])
def test_orientation_tags(tmp_path, format):
    """Labels are drawn on images as viewers show them; a label of the stored pixels is refused."""
    made = WRITERS[format](tmp_path / "s")
    image = image_of(tmp_path / "s", "a")
    tag = Image.Exif()
    tag[0x0112] = 6
    with Image.open(image) as picture:
        stored = picture.transpose(Image.Transpose.ROTATE_90)  # which a viewer turns back
        shown = np.array(picture)
    stored.save(image, exif=tag)
    import_made(format, tmp_path, tmp_path / "out", lambda root: made)
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], expected("a"))
    np.testing.assert_array_equal(read_image(tmp_path / "out/images/a.png").permute(1, 2, 0), shown)
    Image.fromarray(shown).save(image, exif=tag)
    with pytest.raises(DataError, match="as viewers show it: its orientation tag 6 turns"):
        import_made(format, tmp_path, tmp_path / "other", lambda root: made)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("train/a.png", "train\\a.png"),
        ("train/a.png", "./train//a.png"),
        (unicodedata.normalize("NFD", "fü/ä.png"), "fü/ä.png"),
        ("frame_000000.PNG", "frame_000000"),  # CVAT's names of the frames of a video
    ],
)
def test_names_that_are_not_quite_those_of_the_files(tmp_path, file, name):
    path = tmp_path / "s" / "images" / file
    write_images(path.parent)
    (path.parent / "a.png").rename(path)
    box = '<box label="car" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"></box>'
    text = cvat_file(cvat_image(0, name, box)).replace(f"{name}.png", name)
    (tmp_path / "s" / "annotations.xml").write_text(text)
    import_made("cvat", tmp_path, tmp_path / "out", lambda root: {"source": root / "s"})
    (label,) = labels(tmp_path / "out").values()
    assert label.sum() == 81


def test_names_that_are_too_much_alike(tmp_path):
    """A file without a suffix could be one of two, a.png.png is not a.png, and names in two Unicode forms."""
    write_images(tmp_path / "images")
    (tmp_path / "images" / "d.png").rename(tmp_path / "images" / "d.png.png")
    (tmp_path / "annotations.xml").write_text(cvat_file(cvat_image(0, "d", "")))
    with pytest.raises(DataError, match="no image file .*images/d.png'"):
        import_made("cvat", tmp_path, tmp_path / "out", lambda root: {"source": root})
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    text = cvat_file(cvat_image(0, "a", "")).replace("a.png", "a")
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match="no image file .*images/a'"):
        import_made("cvat", tmp_path, tmp_path / "out", lambda root: {"source": root})
    composed, decomposed = (unicodedata.normalize(form, "ä") for form in ("NFC", "NFD"))
    for name, form in zip("bc", (composed, decomposed), strict=True):
        (tmp_path / "images" / f"{name}.png").rename(tmp_path / "images" / f"{form}.png")
    text = cvat_file(cvat_image(0, composed, "") + cvat_image(1, decomposed, ""))
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match="gets the same id"):
        import_made("cvat", tmp_path, tmp_path / "out", lambda root: {"source": root})


def test_missing_and_surplus_images(tmp_path):
    for format in ("coco", "coco-panoptic", "labelme", "cvat", "label-studio", "voc"):
        root = tmp_path / format
        made = WRITERS[format](root)
        folder = image_of(root, "b").parent
        (folder / "b.png").rename(folder / "z.png")
        if format == "voc":  # without lists there is only a mask too many
            found = import_made(format, tmp_path, tmp_path / "voc-out", lambda root: made)
            assert "left out: 1 mask without an image, or not PNG (b.png)" in found.notes
            continue
        with pytest.raises(DataError, match=r"no image file .*b\.png.*1 of \d are missing") as error:
            import_made(format, tmp_path, tmp_path / f"{format}-out", lambda root: made)
        assert str(error.value).startswith(str(root))
        out = tmp_path / f"{format}-less"
        found = import_made(format, tmp_path, out, lambda root: made, skip_corrupt=1)
        assert len(found.splits["train"].skipped) == 1
        listed = "z" in labels(out)  # LabelMe's images need no file
        assert listed == (format == "labelme") == (not any("1 image file that" in n for n in found.notes))


def test_splits(tmp_path):
    """A name, a share for validation, a second source into one folder, and never the same split twice."""
    out = tmp_path / "out"
    import_made("labelme", tmp_path / "s", out, splits=["train"], val=0.3)
    ids = sorted([*labels(out, "train"), *labels(out, "val")])
    assert ids == list(NAMES)
    assert [label is not None for label in labels(out, "val").values()] == [True]
    with pytest.raises(DataError, match="train.txt: exists already"):
        import_made("labelme", tmp_path / "s", out)
    root = tmp_path / "t"
    write_images(root / "more")
    shapes = [labelme_shape("tree", corners(0, 0, 9, 9))]
    write_json(root / "more" / "a.json", labelme_file("a", shapes))
    import_made("labelme", root, out, lambda root: {"source": root}, splits=["test"])
    assert labels(out, "test")["more/a"].unique().tolist() == [0, 2]  # the classes of the folder
    write_json(root / "more" / "b.json", labelme_file("b", [labelme_shape("tre", corners(0, 0, 9, 9))]))
    with pytest.raises(
        DataError, match="label 'tre' is not a class of semseg in the target.*did you mean 'tree'"
    ):
        import_made("labelme", root, out, lambda root: {"source": root}, splits=["extra"])


def test_an_import_interrupted_in_its_second_split(tmp_path):
    made, out = WRITERS["labelme"](tmp_path / "s"), tmp_path / "out"
    import_made("labelme", tmp_path, out, lambda _: made, val=0.3)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (name,) = (out / "splits" / "val.txt").read_text().split()
    for path in (out / "splits" / "val.txt", out / "images" / f"{name}.png"):
        path.unlink()
    import_made("labelme", tmp_path, out, lambda _: made, val=0.3)
    assert whole == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["labelme", "coco", "voc"])
def test_a_target_that_is_read_from(tmp_path, format):
    """Repeated after an interruption, it would read what it wrote itself."""
    made = WRITERS[format](tmp_path / "s")
    target = {"labelme": "", "coco": "images", "voc": "SegmentationClass"}[format]
    made |= {"masks": str(tmp_path / "s" / target)} if format == "voc" else {}
    with pytest.raises(ConfigError, match="TARGET must not be"):
        import_made(format, tmp_path, tmp_path / "x" / ".." / "s" / target, lambda _: made)


def test_a_damaged_mask_is_one_image(tmp_path):
    """Masks are decoded one image at a time, so that one can be skipped and all need not fit into memory."""
    for format, file, place in (
        ("labelme", "a.json", ("shapes", 2, "mask")),
        ("label-studio", "export.json", (0, "annotations", 0, "result", 1, "value", "rle")),
    ):
        made = WRITERS[format](tmp_path / format)
        content = json.loads((tmp_path / format / file).read_text())
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = holder[place[-1]][:20]
        write_json(tmp_path / format / file, content)
        found = import_made(format, tmp_path, tmp_path / "out" / format, lambda _: made, skip_corrupt=1)
        (message,) = found.splits["train"].skipped
        assert message.startswith(str(tmp_path / format / file)) and found.splits["train"].images == 3


def test_an_edited_source_does_not_go_on(tmp_path):
    """After a failure the same command goes on, but not with annotations that were changed meanwhile."""
    made = WRITERS["labelme"](tmp_path / "s")
    write_json(tmp_path / "s" / "d.json", labelme_file("d", [], imageWidth=65))
    with pytest.raises(DataError, match="drawn on 65x48"):
        import_made("labelme", tmp_path, tmp_path / "out", lambda _: made)
    (tmp_path / "s" / "d.json").unlink()
    shapes = [labelme_shape(label, corners(0, 0, 9, 9)) for label in ("car", "tree")]
    former = (tmp_path / "s" / "b.json").read_text()
    write_json(tmp_path / "s" / "b.json", labelme_file("b", shapes))
    with pytest.raises(DataError, match="files of 'b' differ from those of out"):
        import_made("labelme", tmp_path, tmp_path / "out", lambda _: made)
    (tmp_path / "s" / "b.json").write_text(former)
    assert import_made("labelme", tmp_path, tmp_path / "out", lambda _: made).splits["train"].images == 4


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("cooc", {}, "FORMAT must be one of coco, .*did you mean 'coco'"),
        ("voc", {"background": "sky"}, "--background has no effect for voc, which only uses --classes"),
        ("labelme", {"empty": True}, "--empty has no effect for labelme"),
        ("coco", {"map": {"semseg": "x"}}, "--map has no effect for coco"),
        ("coco", {"classes": ("cra", "tree")}, "--classes: no label is called 'cra'; did you mean 'car'"),
        ("cvat", {"ignore": ("trees",)}, "--ignore: no label is called 'trees'; did you mean 'tree'"),
        ("cvat", {"classes": ("car",), "ignore": ("car",)}, "--ignore: 'car' is one of --classes"),
        ("labelme", {"val": 1.5}, "--val must be a fraction"),
        ("labelme", {"val": 0.01}, "--val 0.01 of 3 labelled images"),
        ("labelme", {"splits": ["a", "b"]}, "--split must be a single name"),
        ("labelme", {"splits": ["../x"]}, "name of a split"),
        ("coco", {"images": "nowhere"}, "nowhere: no such folder"),
        ("coco", {"task": "edge"}, "task 'edge': kind must be 'binary' for this name"),
        ("label-studio", {"empty": True}, "--empty needs --map"),
        ("label-studio", {"map": {"semseg": "tug"}}, "no region has the from_name 'tug'; did you mean 'tag'"),
        ("huggingface", {"map": {}}, "--map must name the column"),
        ("huggingface", {"map": {"semseg": "labels"}}, "unknown column 'image'"),
        ("huggingface", {"map": {"semseg": "x", "semseg:classes": "y"}}, "--map must name each task once"),
        ("huggingface", {"scale": {"dept": 1.0}}, "--scale: unknown task 'dept', did you mean 'depth'"),
        (
            "huggingface",
            {"scale": {"semseg": 1.0}},
            "--scale must be a positive number",
        ),
        ("huggingface", {"scale": {"depth": -1.0}}, "--scale must be a positive number"),
        ("huggingface", {"ignore": ("car",)}, "--ignore must list pixel values of class maps, got car"),
        (
            "huggingface",
            {"map": {"depth": "depth"}},
            "--classes can only be used if --map names exactly one task",
        ),
        ("huggingface", {"classes": None}, "--classes must name the classes of semseg"),
    ],
)
def test_options_that_cannot_work(tmp_path, format, options, message):
    writer = WRITERS.get(format, lambda root: {"source": root})
    with pytest.raises((ConfigError, DataError), match=message):
        import_made(format, tmp_path / "s", tmp_path / "out", writer, **options)
    assert not (tmp_path / "out").exists()
