"""COCO: instances and "stuff" as JSON, panoptic PNG files, and pixel maps of things and stuff.

Format: https://cocodataset.org/#format-data. An image without annotations has no label, unless the option
`empty` says that such images were annotated and contain no objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dmtl.data.folder.paths import find_files, read_text
from dmtl.data.images import read_label_image
from dmtl.data.imports.dataset import Drawing, Entry, ValueMap
from dmtl.data.imports.files import Images, Node, left_out, read_json, unique_names
from dmtl.data.imports.format import Context, Format, Found, Options, annotated
from dmtl.data.imports.legend import VOID
from dmtl.data.imports.shapes import Box, Polygon, Runs, Shape
from dmtl.errors import DataError
from dmtl.text import plural

T = TypeVar("T")

WHAT = "a COCO annotation file"


@dataclass
class _Image:
    entry: Entry
    size: tuple[int, int] | None


def read_instances(source: Path, options: Options, context: Context) -> Found:
    """Read objects, whose segmentations are drawn in the order of the file; crowds count as their category.

    Polygons of fewer than three points are left out. If an object has only a box, or no other polygons, the
    pixels in its box are ignored.
    """
    root = read_json(source, WHAT)
    categories = _categories(root)
    images, notes = _images(root, source, options)
    shapes: dict[int | str, list[tuple[str, Shape]]] = {}
    boxes = thin = 0
    for node in root["annotations"].list():
        image = _one(images, node["image_id"], "image")
        label = _one(categories, node["category_id"], "category")
        drawn = shapes.setdefault(node["image_id"].key(), [])
        segmentation = node.get("segmentation")
        if segmentation is not None and isinstance(segmentation.value, dict):
            runs = _runs(segmentation, image.size)
            image.size = runs.size
            drawn.append((label, runs))
            continue
        parts = [] if segmentation is None else [_outline(part) for part in segmentation.list()]
        outlines = tuple(outline for outline in parts if len(outline) > 2)
        thin += len(parts) - len(outlines)
        boxes += not outlines
        drawn.append((label, Polygon(outlines)) if outlines else (VOID, _box(node)))
    for key, image in images.items():
        if key in shapes or options.empty:
            where = f"{source}: image {key!r}"
            image.entry.labels[options.task] = Drawing(shapes.get(key, []), where, image.size)
    if boxes:
        notes.append(f"{plural(boxes, 'object')} with only a box, whose pixels are ignored")
    if thin:
        notes.append(f"left out: {plural(thin, 'polygon')} of fewer than three points")
    listed = {options.task: list(categories.values())}
    return annotated(source, options, context, _entries(images), listed, notes)


def read_panoptic(source: Path, options: Options, context: Context) -> Found:
    """Read a category for each segment of a PNG file; pixels of no segment (black) are ignored."""
    root = read_json(source, "a COCO panoptic file")
    categories = _categories(root)
    images, notes = _images(root, source, options, masks := _masks(source, options, source.with_suffix("")))
    for node in root["annotations"].list():
        image = _one(images, node["image_id"], "image")
        names = {0: VOID}
        for segment in node["segments_info"].list():
            if (id := segment["id"].whole()) in names:
                raise DataError(f"{segment.where}: a second segment has the id {id}, expected different ids")
            names[id] = _one(categories, segment["category_id"], "category")
        if image.entry.labels:
            raise DataError(f"{node.where}: a second annotation of image {node['image_id'].value!r}")
        path = masks.path(node["file_name"].path(), node.where)
        image.entry.labels[options.task] = _Segments(path, names)
    listed = {options.task: list(categories.values())}
    return annotated(source, options, context, _entries(images), listed, notes, complete=True)


def read_stuff(source: Path, options: Options, context: Context) -> Found:
    """Read pixel maps whose values are category ids of a JSON file, or 0 for no category.

    If the source is a list of labels instead (lines such as "1: person" in labels.txt), a value is the number
    in the list minus one, or 255 for no label, as in the maps of COCO-Stuff.
    """
    if source.suffix.lower() == ".json":
        root = read_json(source, WHAT)
        values = {0: VOID, **_categories(root)}
        masks = _masks(source, options, source.with_name(f"{source.stem}_pixelmaps"))
        images, notes = _images(root, source, options, masks)
        entries = _entries(images)
    else:
        values = {255: VOID, **_listed_labels(source)}
        masks = _masks(source, options, source.with_suffix(""))
        folder = Images(source.parent if options.images is None else options.images)
        entries = [Entry(folder.id(path), path, str(source)) for path in folder.files([masks.root])]
        notes = []
    found = find_files(masks.root, (".png",), [entry.id for entry in entries])
    for entry in entries:
        if entry.id in found:
            entry.labels[options.task] = ValueMap(masks.path(found[entry.id], source), values)
    left = [path for path in masks.files() if masks.id(path) not in found]
    notes += left_out(left, "map", "without an image")
    listed = {options.task: [name for name in values.values() if name != VOID]}
    return annotated(source, options, context, entries, listed, notes, complete=True)


class _Segments(ValueMap):
    """A map whose values are segment ids, coded as colours: id = red + 256 green + 65536 blue."""

    def stored(self) -> np.ndarray:
        rgb = read_label_image(self.path)
        if rgb.ndim != 3:
            raise DataError(f"{self.path}: one value for each pixel, expected an RGB picture of segments")
        return rgb.astype(np.int64) @ np.array([1, 256, 65536])

    def called(self, value: int) -> str:
        return f"segment {value}"


def _images(
    root: Node, source: Path, options: Options, masks: Images | None = None
) -> tuple[dict[int | str, _Image], list[str]]:
    """Return the images of a file by id, and notes about image files in their folder that it does not
    list."""
    folder = Images(source.parent if options.images is None else options.images)
    images: dict[int | str, _Image] = {}
    for node in root["images"].list():
        key, path = node["id"].key(), folder.path(node["file_name"].path(), node.where)
        if key in images:
            raise DataError(f"{node.where}: a second image has the id {key!r}, expected different ids")
        sides = [node.get("height"), node.get("width")]
        size = None if None in sides else (node["height"].whole(), node["width"].whole())
        images[key] = _Image(Entry(folder.id(path), path, node.where), size)
    used = {image.entry.image for image in images.values()}
    left = [path for path in folder.files([masks.root] if masks else []) if path not in used]
    return images, left_out(left, "image file", f"that {source.name} does not list")


def _entries(images: Mapping[int | str, _Image]) -> list[Entry]:
    return [image.entry for image in images.values()]


def _masks(source: Path, options: Options, default: Path) -> Images:
    folder = default if options.masks is None else Path(options.masks)
    if not folder.is_dir():
        raise DataError(
            f"{source}: the maps' folder {str(folder)!r:.200} does not exist; name the folder with --masks"
        )
    return Images(folder)


def _categories(root: Node) -> dict[int, str]:
    """Return the names of categories by id, sorted by id."""
    nodes = root["categories"].list()
    names = list(unique_names(((n["name"].text(), n.where) for n in nodes), "category"))
    found: dict[int, str] = {}
    for node, name in zip(nodes, names):
        if (id := node["id"].whole()) in found:
            raise DataError(f"{node.where}: a second category has the id {id}, expected different ids")
        found[id] = name
    return dict(sorted(found.items()))


def _listed_labels(source: Path) -> dict[int, str]:
    """Return the names in lines "NUMBER: NAME" by the value in the maps, which is NUMBER minus one."""
    labels: dict[int, str] = {}
    for number, line in enumerate(read_text(source, "a list of labels such as '1: person'").splitlines(), 1):
        if not line.strip():
            continue
        value, colon, name = line.partition(":")
        where = f"{source}: line {number}"
        if not colon or not value.strip().isdecimal() or int(value) > 255:
            raise DataError(
                f"{where}: {line[:60]!r}, expected a number up to 255 and a name such as '1: person'"
            )
        if int(value) > 0:  # 0 is "unlabeled"
            labels[int(value) - 1] = Node(name.strip(), where).text()
    return dict(zip(labels, unique_names(((name, source) for name in labels.values()), "label")))


def _one(known: Mapping[Any, T], node: Node, what: str) -> T:
    key = node.key()
    if key not in known:
        raise DataError(f"{node.where}: no {what} has the id {key!r:.60}")
    return known[key]


def _outline(node: Node) -> np.ndarray:
    """Convert a flat list of coordinates x, y, x, y, ... to the points of a polygon, [N, 2]."""
    flat = node.numbers()
    if flat.ndim != 1 or len(flat) % 2:
        raise node.unlike("coordinates x, y, x, y, ...")
    return flat.reshape(-1, 2)


def _box(node: Node) -> Box:
    box = node["bbox"]
    if len(box.list()) != 4:
        raise box.unlike("[x, y, width, height]")
    x, y, width, height = (side.number() for side in box.list())
    return Box(x, y, x + width, y + height)


def _runs(node: Node, size: tuple[int, int] | None) -> Runs:
    """Read the run lengths, compressed or not, of a mask that has the size of the image."""
    sides = node["size"].list()
    if len(sides) != 2:
        raise node["size"].unlike("[height, width]")
    height, width = (side.whole() for side in sides)
    if size is not None and (height, width) != size:
        raise node["size"].unlike(f"[{size[0]}, {size[1]}], the size of the image")
    counts = node["counts"]
    if isinstance(counts.value, str):
        return Runs(counts.value, (height, width))
    lengths = counts.numbers()
    if lengths.ndim != 1:
        raise counts.unlike("a list of lengths")
    return Runs(lengths, (height, width))


_FOLLOWS = {"images", "task", "classes", "ignore"}
INSTANCES = Format(read_instances, frozenset({*_FOLLOWS, "background", "empty"}))
PANOPTIC = Format(read_panoptic, frozenset({*_FOLLOWS, "masks"}))
STUFF = Format(read_stuff, frozenset({*_FOLLOWS, "masks"}))
