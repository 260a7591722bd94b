"""What each format has of its own: shapes, conventions, and what is wrong with a file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from dmtl.data.folder.dataset import Folder
from dmtl.data.imports.shapes import Bitmap, Box, Ellipse, Polygon, Runs, coco_lengths
from dmtl.errors import DataError

from .annotations import (
    HEIGHT,
    NAMES,
    WIDTH,
    columns,
    corners,
    cvat_file,
    cvat_image,
    expected,
    labelme_file,
    labelme_shape,
    png,
    region,
    studio_task,
    write_coco,
    write_cvat,
    write_huggingface,
    write_images,
    write_json,
    write_label_studio,
    write_labelme,
    write_panoptic,
    write_stuff,
)
from .test_import_folder import import_made, labels

Y, X = np.mgrid[:HEIGHT, :WIDTH] + 0.5


def painted(shape, size=(HEIGHT, WIDTH)) -> np.ndarray:
    ids = np.zeros(size, np.uint8)
    shape.paint(ids, 1)
    return ids


# Shapes


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_those_of_coco(seed):
    """Of any form, also with parts outside the image."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-20, 1.3 * WIDTH, (rng.integers(3, 12), 2)).round(int(rng.integers(0, 3)))
    wanted = coco.decode(coco.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH))[:, :, 0]
    np.testing.assert_array_equal(painted(Polygon((points,))), wanted)


def test_boxes_ellipses_and_masks():
    np.testing.assert_array_equal(painted(Box(20.4, 3, 9.6, 8.5)), (abs(X - 15) < 5.4) & (Y > 3) & (Y < 8.5))
    turned = ((X - 30 + Y - 20) ** 2 / 208 + (Y - 20 - X + 30) ** 2 / 53) <= 1
    np.testing.assert_array_equal(painted(Ellipse(30, 20, 104**0.5, 26.5**0.5, 45)), turned)
    assert not painted(Ellipse(30, 20, 0, 5)).any() and not painted(Box(70, 50, 90, 60)).any()
    mask = np.random.default_rng(0).random((10, 12)) < 0.5
    for left, top in ((0, 0), (-4, -3), (WIDTH - 5, HEIGHT - 4)):
        wanted = np.zeros((HEIGHT + 40, WIDTH + 40), bool)
        wanted[top + 20 : top + 30, left + 20 : left + 32] = mask
        np.testing.assert_array_equal(painted(Bitmap(mask, left, top)), wanted[20:-20, 20:-20])


@pytest.mark.parametrize("seed", range(5))
def test_runs(seed):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < (0.01, 0.2, 0.5, 0.9, 1)[seed]
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert coco_lengths(packed).tolist() == columns(mask)
    np.testing.assert_array_equal(painted(Runs(packed, mask.shape)), mask)
    rows = Runs(np.array(columns(mask[:9, :7], "C")), (9, 7), 5, 3, by_column=False)
    np.testing.assert_array_equal(painted(rows)[3:12, 5:12], mask[:9, :7])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            Polygon((np.array([[0, 0], [5, 5], [0, 900]]),)),
            "a point at (0, 900), far outside",
        ),
        (Polygon((np.tile([[0, 0], [60, 40]], (40_000, 1)),)), "an outline of 4800000 pixels"),
        (Box(0, 0, 1, -99), "far outside the image"),
        (Ellipse(-99, 0, 1, 1), "far outside the image"),
        (Bitmap(np.ones((3, 3), bool), 64, 0), "expected it inside 64x48 pixels"),
        (Runs(np.array([5, 4]), (3, 3), 62, 0), "a mask of 3x3 pixels at (62, 0)"),
        (Runs(np.array([5, 5]), (3, 3)), "runs of 10 pixels in all, expected 9"),
        (Runs(np.array([12, -3]), (3, 3)), "runs of 9 pixels"),
        (Runs("oo", (3, 3)), "end within a number"),
        (Runs("1~", (3, 3)), "invalid character '~' in its compressed runs"),
    ],
)
def test_shapes_that_do_not_fit(shape, message):
    with pytest.raises(ValueError) as error:
        painted(shape)
    assert message in str(error.value)


def edited(writer, root, edit, name):
    """What `writer` makes, with its JSON file changed by `edit`."""
    made = writer(root)
    content = json.loads((root / name).read_text())
    edit(content)
    write_json(root / name, content)
    return lambda _: made


def without(key):
    return lambda node: node.pop(key)


def with_value(**values):
    return lambda node: node.update(values)


def at(*path):
    """Apply an edit to a part of a file."""

    def wrap(edit):
        def apply(content):
            for key in path:
                content = content[key]
            edit(content)

        return apply

    return wrap


# COCO


def test_coco_boxes_crowds_and_thin_polygons(tmp_path):
    def edit(content):
        first, second, third = content["annotations"]
        first.pop("segmentation")
        second["segmentation"] = [[1, 1, 5, 5], sum(corners(50, 0, 60, 8), [])]
        third["segmentation"] = []

    made = import_made(
        "coco", tmp_path, tmp_path / "out", edited(write_coco, tmp_path, edit, "annotations/instances.json")
    )
    assert "2 objects with only a box, whose pixels are ignored" in made.notes
    assert "left out: 1 polygon of fewer than three points" in made.notes
    found = labels(tmp_path / "out")
    assert found["a"][0, 20, 10] == 255 and found["a"][0, 4, 55] == 2 and found["a"][0, 30, 30] == 0
    assert found["b"][0, 20, 40] == 255


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[9, 11, 12, 11]]])
def test_coco_objects_without_an_outline(tmp_path, segmentation):
    """An object without an outline is somewhere in its box. Ids may be 10.0, as pandas writes them."""
    edit = at("annotations", 0)(with_value(segmentation=segmentation, image_id=10.0))
    name = "annotations/instances.json"
    made = import_made("coco", tmp_path, tmp_path / "out", edited(write_coco, tmp_path, edit, name))
    assert (labels(tmp_path / "out")["a"][0, 10:20, 8:24] == 255).all()
    assert "1 object with only a box, whose pixels are ignored" in made.notes


def test_coco_background_in_another_case(tmp_path):
    edit = at("categories")(lambda found: found.append({"id": 0, "name": "Background"}))
    name = "annotations/instances.json"
    made = import_made("coco", tmp_path, tmp_path / "out", edited(write_coco, tmp_path, edit, name))
    assert "labels that differ only in case are different classes: Background, background" in made.notes


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("images"), "no 'images'"),
        (at("images", 1)(with_value(file_name="/etc/a.png")), "images[1]: image file: '/etc/a.png'"),
        (at("images", 1)(with_value(file_name="../a.png")), "images[1]: image file: '../a.png'"),
        (at("images", 1)(with_value(file_name="a.png")), "images[1]: image 'a' has two entries"),
        (at("images", 1)(with_value(file_name="a.jpg")), "gets the same id 'a' as"),
        (at("images", 1)(with_value(id=10)), "images[1]: a second image has the id 10"),
        (at("images", 1)(with_value(width="wide")), "images[1]: width: 'wide', expected a finite number"),
        (at("categories", 1)(with_value(name="tree")), "categories[1]: a second category is called 'tree'"),
        (at("categories", 1)(with_value(id=44)), "categories[1]: a second category has the id 44"),
        (at("categories", 1)(with_value(name="car ")), "name: 'car ', expected a name without spaces"),
        (at("annotations", 2)(with_value(image_id=99)), "annotations[2]: image_id: no image has the id 99"),
        (at("annotations", 2)(with_value(category_id=1)), "no category has the id 1"),
        (at("annotations", 2)(with_value(segmentation=[[1, 2, 3]])), "expected coordinates x, y, x, y"),
        (at("annotations", 2)(with_value(segmentation=[[1, 2, 3, float("nan"), 5, 6]])), "finite numbers"),
        (at("annotations", 2)(with_value(segmentation=[[0, 0, 9, 0, 5, 1000]])), "shape 1 ('tree'): a"),
        (at("annotations", 2)(with_value(segmentation={"size": [9, 9], "counts": "1"})), "size of the image"),
        (at("annotations", 2)(with_value(segmentation={"size": [48, 64], "counts": [7]})), "runs of 7"),
        (at("annotations", 2)(with_value(segmentation=None, bbox=[1, 2])), "expected [x, y, width, height]"),
    ],
)  # fmt: skip
def test_coco_damage(tmp_path, edit, message):
    name = "annotations/instances.json"
    with pytest.raises(DataError) as error:
        import_made("coco", tmp_path, tmp_path / "out", edited(write_coco, tmp_path, edit, name))
    assert str(error.value).startswith(str(tmp_path / name)) and message in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (at("annotations", 0, "segments_info")(lambda s: s.pop()), "no label has the segment 140002"),
        (at("annotations", 0, "segments_info", 1)(with_value(id=70_001)), "a second segment has the id"),
        (at("annotations", 0)(with_value(image_id=11)), "a second annotation of image 11"),
        (at("annotations", 0)(with_value(file_name="../a.png")), "'../a.png', expected a relative path"),
        (at("annotations", 0)(with_value(file_name="no.png")), "no.png: cannot be read"),
    ],
)  # fmt: skip
def test_panoptic_damage(tmp_path, edit, message):
    with pytest.raises(DataError) as error:
        import_made(
            "coco-panoptic",
            tmp_path,
            tmp_path / "out",
            edited(write_panoptic, tmp_path, edit, "panoptic.json"),
        )
    assert message in str(error.value)


def test_maps_of_things_and_stuff(tmp_path):
    """COCO-Stuff: a list of labels, whose numbers are one more than the values of the maps."""
    made = write_stuff(tmp_path)
    for path in (tmp_path / "stuff_pixelmaps").iterdir():
        ids = np.array([255, 2, 43], np.uint8)[expected(path.stem)]
        path.write_bytes(png(ids))
    (tmp_path / "labels.txt").write_text("0: unlabeled\n3: car\n44: tree\n")
    made |= {"source": tmp_path / "labels.txt", "masks": str(tmp_path / "stuff_pixelmaps")}
    import_made("coco-stuff", tmp_path, tmp_path / "out", lambda _: made)
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], np.array([255, 0, 1])[expected("a")])
    (tmp_path / "labels.txt").write_text("3: car\n44: car\n")
    with pytest.raises(DataError, match="a second label is called 'car'"):
        import_made("coco-stuff", tmp_path, tmp_path / "other", lambda _: made)
    (tmp_path / "labels.txt").write_text("3: car\n5: sky\n")
    with pytest.raises(DataError, match="a.png: no label has the value 43"):
        import_made("coco-stuff", tmp_path, tmp_path / "other", lambda _: made)


# LabelMe


def import_labelme(root, shapes, out="out", edit=None, **options):
    write_images(root)
    content = labelme_file("a", shapes)
    if edit is not None:
        edit(content)
    write_json(root / "a.json", content)
    return import_made("labelme", root, root.parent / out, lambda root: {"source": root}, **options)


def test_labelme_shapes(tmp_path):
    shapes = [
        labelme_shape("disc", [[40, 24], [40, 34]], "circle"),
        labelme_shape("slab", corners(2, 2, 20, 12), "oriented_rectangle"),
        labelme_shape("__ignore__", corners(4, 4, 6, 6)),
        labelme_shape("slab", [[1, 1]], "point"),
        labelme_shape("slab", [[1, 1], [2, 2]], "line"),
        labelme_shape("slab", [[1, 1], [5, 5]], "points"),
        labelme_shape("disc", corners(0, 40, 9, 48)) | {"shape_type": None},
        labelme_shape("Slab", corners(50, 0, 60, 3)),
    ]
    made = import_labelme(tmp_path / "s", shapes)
    wanted = 2 * ((X - 40) ** 2 + (Y - 24) ** 2 <= 100) + 3 * ((X > 2) & (X < 20) & (Y > 2) & (Y < 12))
    wanted[4:6, 4:6] = 255
    wanted[40:48, :9] = 2
    wanted[:3, 50:60] = 1
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)
    assert "labels that differ only in case are different classes: Slab, slab" in made.notes
    for kind in ("point", "line", "points"):
        assert f"left out: 1 {kind} shape, without an area" in made.notes


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("shapes"), "no 'shapes'"),
        (without("imagePath"), "no 'imagePath'"),
        (with_value(imagePath="../a.png"), "'../a.png', expected a relative path"),
        (
            with_value(imagePath="C:\\photos\\a.png"),
            "'C:/photos/a.png', expected a path relative to this file",
        ),
        (with_value(imageHeight=None, imageWidth=3.5, shapes=[{}]), "shapes[0]: no 'label'"),
        (with_value(imageWidth=3.5), "imageWidth: 3.5, expected a whole number"),
        (at("shapes", 0)(with_value(shape_type="cube")), "shapes[0]: unknown shape 'cube'"),
        (at("shapes", 0)(with_value(label=7)), "shapes[0]: label: 7, expected a name"),
        (at("shapes", 0)(with_value(points=[[1, 2]], shape_type="circle")), "circle of 1 point, expected 2"),
        (at("shapes", 0)(with_value(points=[[1, 2], [3]])), "expected a list of finite numbers"),
        (at("shapes", 0)(with_value(points=[1, 2, 3])), "expected points [x, y]"),
        (at("shapes", 0)(with_value(points=[[1, 2]] * 3, shape_type="rectangle")), "rectangle of 3 points"),
        (
            at("shapes", 0)(with_value(points=[[1, 2]] * 2, shape_type="mask", mask="?")),
            "a PNG file in base64",
        ),
        (at("shapes", 0)(with_value(points=[[1, 2]] * 2, shape_type="mask")), "no 'mask'"),
    ],
)
def test_labelme_damage(tmp_path, edit, message):
    with pytest.raises(DataError) as error:
        import_labelme(tmp_path / "s", [labelme_shape("x", corners(0, 0, 9, 9))], edit=edit)
    assert str(error.value).startswith(str(tmp_path / "s/a.json")) and message in str(error.value)


def test_a_folder_without_labelme_files(tmp_path):
    write_images(tmp_path / "s")
    with pytest.raises(DataError, match=f"^{tmp_path}/s: no LabelMe JSON files in it, expected one for"):
        import_made("labelme", tmp_path, tmp_path / "out", lambda _: {"source": tmp_path / "s"})
    assert not (tmp_path / "out").exists()


def test_labelme_files_elsewhere(tmp_path):
    """Files in a folder next to the images, with paths as Windows writes them, or of another machine."""
    write_images(tmp_path / "s" / "img")
    shapes = [labelme_shape("x", corners(0, 0, 9, 9))]
    write_json(tmp_path / "s" / "ann" / "a.json", labelme_file("a", shapes, imagePath="..\\img\\a.png"))
    import_made("labelme", tmp_path, tmp_path / "out", lambda _: {"source": tmp_path / "s"})
    assert labels(tmp_path / "out")["img/a"].any() and labels(tmp_path / "out")["img/b"] is None
    write_json(tmp_path / "s" / "ann" / "a.json", labelme_file("a", shapes, imagePath="D:\\work\\a.png"))
    made = {"source": tmp_path / "s" / "ann", "images": str(tmp_path / "s" / "img")}
    import_made("labelme", tmp_path, tmp_path / "other", lambda _: made)
    assert labels(tmp_path / "other")["a"].any()
    write_json(tmp_path / "s" / "ann" / "again.json", labelme_file("a", shapes))
    with pytest.raises(DataError, match="again.json: image 'a.png' has two"):
        import_made("labelme", tmp_path, tmp_path / "third", lambda _: made)


def test_labelme_files_that_nobody_drew(tmp_path):
    """Hidden files, which systems and editors leave behind, and an outline of two points."""
    shapes = [labelme_shape("x", corners(0, 0, 9, 9)), labelme_shape("x", [[20, 20], [30, 30]])]
    write_images(tmp_path / "s")
    (tmp_path / "s" / "._a.json").write_bytes(b"\0\5\x16\7\xff")
    write_json(tmp_path / "s" / ".ipynb_checkpoints" / "a-checkpoint.json", labelme_file("a", shapes))
    write_json(tmp_path / "s" / "b.JSON", labelme_file("b", shapes))
    made = import_labelme(tmp_path / "s", shapes)
    found = labels(tmp_path / "out")
    assert found["a"].sum() == found["b"].sum() == 81 and found["c"] is None
    assert "left out: 2 thin polygon shapes, without an area" in made.notes


# CVAT


def import_cvat(root, shapes, out="out", text=None, **options):
    write_images(root / "images")
    images = "".join(cvat_image(n, name, shapes if name == "a" else "") for n, name in enumerate(NAMES))
    (root / "annotations.xml").write_text(cvat_file(images) if text is None else text)
    return import_made("cvat", root, root.parent / out, lambda root: {"source": root}, **options)


def test_cvat_shapes(tmp_path):
    made = import_cvat(
        tmp_path / "s",
        '<ellipse label="car" cx="40" cy="24" rx="12" ry="6" rotation="90" z_order="0"></ellipse>'
        '<box label="tree" xtl="2" ytl="10" xbr="22" ybr="20" rotation="90" z_order="-1"></box>'
        '<polyline label="car" points="1,1;2,2"></polyline><cuboid label="car"></cuboid>',
    )
    wanted = 2 * ((X > 7) & (X < 17) & (Y > 5) & (Y < 25))
    wanted[((X - 40) / 6) ** 2 + ((Y - 24) / 12) ** 2 <= 1] = 1
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)
    assert "left out: 1 polyline shape, without an area" in made.notes
    assert "left out: 1 cuboid shape, without an area" in made.notes


def test_cvat_subsets_are_splits(tmp_path):
    """Images may be in a folder for each subset, and "Validation" is called val."""
    text = cvat_file("".join(cvat_image(n, name, "") for n, name in enumerate(NAMES)))
    for name, subset in zip(NAMES, ("Train", "Train", "Validation", "Validation"), strict=True):
        text = text.replace(f'name="{name}.png"', f'name="{name}.png" subset="{subset}"')
    root = write_images(tmp_path / "s" / "images")
    for name in "cd":
        (root / "Validation").mkdir(exist_ok=True)
        (root / f"{name}.png").rename(root / "Validation" / f"{name}.png")
    (tmp_path / "s" / "annotations.xml").write_text(text)
    import_made("cvat", tmp_path, tmp_path / "out", lambda _: {"source": tmp_path / "s"}, empty=True)
    assert list(labels(tmp_path / "out", "train")) == ["a", "b"]
    assert list(labels(tmp_path / "out", "val")) == ["Validation/c", "Validation/d"]


LAUGHS = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ('<blob label="car"></blob>', "image 1 ('a.png'): shape 1, <blob>: unknown shape"),
        ('<box label="car" xtl="1" ytl="2" xbr="3"></box>', "<box>: no 'ybr'"),
        ('<box label="car" xtl="1" ytl="2" xbr="3" ybr="inf"></box>', "ybr: inf, expected a finite number"),
        ('<box xtl="1" ytl="2" xbr="3" ybr="4"></box>', "label: None, expected a name"),
        ('<polygon label="car" points="1,2;3,4"></polygon>', "expected at least three points"),
        ('<polygon label="car" points="1,2;3,x;1,1"></polygon>', "expected a list of finite numbers"),
        ('<mask label="car" rle="3, 4" left="0" top="0" width="3" height="3"></mask>', "runs of 7 pixels"),
        (
            '<mask label="car" rle="9" left="63" top="0" width="3" height="3"></mask>',
            "a mask of 3x3 pixels at",
        ),
        ('<track id="1"></track>', "unknown shape"),
        ("<box", "not readable XML"),
    ],
)
def test_cvat_damage(tmp_path, shapes, message):
    with pytest.raises(DataError) as error:
        import_cvat(tmp_path / "s", shapes)
    assert str(error.value).startswith(str(tmp_path / "s/annotations.xml")) and message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<data></data>", '<data>, expected an export as "CVAT for images 1.1"'),
        ("<annotations><track id='0'/></annotations>", "tracks of a video"),
        ("<annotations></annotations>", "no images"),
        (f"{LAUGHS}<annotations><version>&b;</version></annotations>", "not readable XML"),
        (cvat_file(cvat_image(0, "/etc/a", "")), "'/etc/a.png', expected a relative path"),
        (cvat_file(cvat_image(0, "a", "") * 2), "image 'a' has two entries"),
        (cvat_file("").replace("<name>tree</name>", "<name>car</name>"), "a second label is called 'car'"),
    ],
)
def test_cvat_files_that_are_something_else(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        import_cvat(tmp_path / "s", "", text=text)
    assert str(error.value).startswith(str(tmp_path / "s/annotations.xml")) and message in str(error.value)


# Label Studio


def import_studio(root, *tasks, out="out", **options):
    write_images(root)
    write_json(root / "export.json", list(tasks))
    made = {"source": root / "export.json", **options}
    return import_made("label-studio", root, root.parent / out, lambda _: made)


def test_label_studio_shapes(tmp_path):
    box = {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90}
    disc = {"x": 25, "y": 50, "radiusX": 12.5, "radiusY": 12.5, "rotation": 0}
    results = [
        region("rectanglelabels", {**box, "rectanglelabels": ["box"]}),
        region("ellipse", disc, id="y"),  # comes again with its label
        region("labels", {**disc, "labels": ["disc"]}, id="y"),
        {"type": "choices", "value": {"choices": ["good"]}, "from_name": "quality", "to_name": "image"},
    ]
    annotations = [{"id": 1, "result": results, "ground_truth": True}, {"id": 2, "result": []}]
    made = import_studio(tmp_path / "s", studio_task(1, "a", *annotations))
    wanted = 1 * ((X > 20) & (X < 32) & (Y > 12) & (Y < 28))
    wanted[((X - 16) / 8) ** 2 + ((Y - 24) / 6) ** 2 <= 1] = 2
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)
    assert "left out: further annotations of an image: 1" in made.notes
    assert "left out: choices results: 1" in made.notes
    assert "left out: 3 image files that export.json does not list (b.png, c.png, d.png)" in made.notes


def test_label_studio_tasks_of_control_tags(tmp_path):
    """Each control tag is a task; one without regions is not labelled, unless the annotation is empty."""
    box = percent = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0}
    first = [
        region("rectanglelabels", {**box, "rectanglelabels": ["wood"]}, "material"),
        region("rectanglelabels", {**percent, "rectanglelabels": ["crack"]}, "damage"),
        region("rectanglelabels", {**percent, "rectanglelabels": ["x"]}, "other"),
    ]
    tasks = [
        studio_task(1, "a", {"id": 1, "result": first}),
        studio_task(2, "b", {"id": 2, "result": first[:1]}),
        studio_task(3, "c", {"id": 3, "result": []}),
    ]
    map = {"semseg": "material", "damage": "damage"}
    for empty in (False, True):
        out = tmp_path / f"out-{empty}"
        made = import_studio(tmp_path / "s", *tasks, out=out.name, map=map, empty=empty)
        assert "left out: regions of 'other': 1" in made.notes
        assert [label is not None for label in labels(out, task="semseg").values()] == [True, True, True]
        assert [label is not None for label in labels(out, task="damage").values()] == [True, empty, True]
        assert Folder(out, "train").tasks["damage"].classes == ("background", "crack")


def test_label_studio_regions_without_a_label(tmp_path):
    """They cover something, nobody knows what."""
    box, dot = {"x": 50, "y": 50, "width": 25, "height": 25}, {"x": 1, "y": 1, "width": 0.5}
    results = [
        region("rectanglelabels", {**box, "x": 0, "rectanglelabels": ["box"]}, id="a"),
        region("rectangle", box, id="b"),
        region("rectanglelabels", {**box, "y": 0, "rectanglelabels": []}, id="c"),
        region("polygonlabels", {"points": [[1, 1], [2, 2]], "polygonlabels": ["box"]}, id="d"),
        region("keypoint", dot, id="e"),
        region("labels", {**dot, "labels": ["box"]}, id="e"),
    ]
    made = import_studio(tmp_path / "s", studio_task(1, "a", {"id": 1, "result": results}))
    wanted = 1 * ((X < 16) & (Y > 24) & (Y < 36))
    wanted[(X > 32) & (X < 48) & (((Y > 24) & (Y < 36)) | (Y < 12))] = 255
    np.testing.assert_array_equal(labels(tmp_path / "out")["a"][0], wanted)
    assert "left out: regions without a label, whose pixels are ignored: 2" in made.notes
    assert "left out: polygon regions of fewer than three points: 1" in made.notes
    assert "left out: keypoint results: 2" in made.notes


@pytest.mark.parametrize(
    "url",
    [
        "/data/upload/7/a.png",
        "/data/local-files/?d=photos/a.png",
        "/data/local-files/?d=photos%5Ca.png",
        "s3://bucket/a#1.png",
        "https://example.org/x/a.png?size=big",
        "s3://bucket/deep/a.png",
        "a.png",
    ],
)
def test_label_studio_urls(tmp_path, url):
    task = studio_task(1, "a", {"id": 1, "result": [region("rectanglelabels", {
        "x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["x"]})]})  # fmt: skip
    task["data"] = {"photo": url, "title": "a house"}
    if "#" in url:
        write_images(tmp_path / "s")
        (tmp_path / "s" / "a.png").rename(tmp_path / "s" / "a#1.png")
    import_studio(tmp_path / "s", task)
    (label,) = labels(tmp_path / "out").values()
    assert label.any()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("annotations"), "(JSON, not JSON-MIN)"),
        (lambda task: task.pop("data") and task.pop("annotations"), "(JSON, not JSON-MIN)"),
        (with_value(data={"image": "/data/local-files/?x=1"}), "expected the URL of an image"),
        (with_value(data={"image": "../a.png"}), "'../a.png', expected a relative path"),
        (with_value(data={"left": "a.png", "right": "b.png"}), "data: no 'image'"),
        (at("annotations", 0, "result", 0)(with_value(type="bitmask")), "unknown result 'bitmask'"),
        (at("annotations", 0, "result", 0)(with_value(type="rectangle", id="y", value=7)), "value: 7, exp"),
        (at("annotations", 0, "result", 0)(without("original_width")), "no 'original_width'"),
        (at("annotations", 0, "result", 0)(with_value(image_rotation=90)), "the image was rotated"),
        (at("annotations", 0, "result", 0, "value")(without("x")), "no 'x'"),
        (at("annotations", 0, "result", 0, "value")(with_value(x=1e5)), "far outside the image"),
        (at("annotations", 0, "result", 0, "value")(with_value(rectanglelabels=["a", "b"])), "2 labels"),
        (at("annotations", 0, "result", 1, "value")(lambda v: v["rle"].pop()), "ends too early"),
        (at("annotations", 0, "result", 1, "value", "rle")(lambda v: v.__setitem__(3, 9)), "expected 12288"),
        (at("annotations", 0, "result", 1, "value", "rle")(lambda v: v.__setitem__(3, 900)), "list of bytes"),
    ],
)  # fmt: skip
def test_label_studio_damage(tmp_path, edit, message):
    made = edited(write_label_studio, tmp_path, at(0)(edit), "export.json")
    with pytest.raises(DataError) as error:
        import_made("label-studio", tmp_path, tmp_path / "out", made)
    assert str(error.value).startswith(str(tmp_path / "export.json")) and message in str(error.value)


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    import sys

    for format, name, extra in (
        ("cvat", "defusedxml", "import"),
        ("labelme", "pycocotools", "import"),
        ("huggingface", "datasets", "datasets"),
    ):
        writer = {"cvat": write_cvat, "labelme": write_labelme, "huggingface": write_huggingface}[format]
        made = writer(tmp_path / format)
        with monkeypatch.context() as patch:
            for module in [m for m in sys.modules if m.split(".")[0] == name]:
                patch.delitem(sys.modules, module)
            patch.setitem(sys.modules, name, None)
            with pytest.raises(DataError, match=f"needs the package {name}.*dmtl.{extra}."):
                import_made(format, tmp_path, tmp_path / "out", lambda _: made)
