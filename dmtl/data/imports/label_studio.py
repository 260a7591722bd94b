"""Label Studio: the JSON export (not JSON-MIN).

Format: https://labelstud.io/guide/export. A submitted annotation without regions means that the image
contains no objects. An image without annotations, or whose annotations were all skipped, has no label.
Predictions in the export are not used. The pixels of a region without a label are ignored. Browsers turn
images by their orientation tags, so labels fit the turned images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from dmtl.data.images import IMAGE_SUFFIXES, MAX_PIXELS
from dmtl.data.imports.dataset import Drawing, Entry
from dmtl.data.imports.files import Images, Node, left_out, read_json
from dmtl.data.imports.format import Context, Format, Found, Options, annotated
from dmtl.data.imports.legend import VOID
from dmtl.data.imports.shapes import Bitmap, Ellipse, Polygon, Shape, turned_box
from dmtl.errors import ConfigError, DataError, did_you_mean
from dmtl.text import plural

WHAT = "a JSON export of Label Studio"
AREAS = ("polygon", "rectangle", "ellipse", "brush")
"""Control tags whose regions cover pixels. With "labels" appended (such as "polygonlabels") they also name
the label of a region."""
FLAT = ("keypoint", "vector", "relation", "choices", "textarea", "rating", "number", "taxonomy", "datetime")
"""Types of results that cover no pixels; they are left out."""


@dataclass
class _Regions:
    """The regions of an annotation: (control tag, label, shape), and the size of the image."""

    found: list[tuple[str, str, Shape]] = field(default_factory=list)
    size: tuple[int, int] | None = None


def read_label_studio(source: Path, options: Options, context: Context) -> Found:
    """Read polygons, rectangles, ellipses and brush strokes, drawn in the order of the file.

    The option `map` assigns a control tag (`from_name`) to each task of the data set; without it, all regions
    belong to one task. If an image has several annotations, the ground truth is used, or else the last one.
    If an annotation has regions, but none of a task's tag, the image has no label of that task, unless the
    option `empty` is set.
    """
    if options.empty and not options.map:
        raise ConfigError("--empty needs --map: an annotation without regions says that the image is empty")
    if options.map and options.task != Options.task:
        raise ConfigError(f"--task {options.task} has no effect with --map, which names the tasks; remove it")
    if len(options.map) > 1 and options.classes is not None:
        raise ConfigError("--classes can only be used with one task, --map names several")
    images = Images(source.parent if options.images is None else options.images)
    omitted: Counter[str] = Counter()
    tags: set[str] = set()
    entries: list[Entry] = []
    for node in read_json(source, WHAT).list():
        if node.get("annotations") is None:
            raise DataError(f"{node.where}: no 'annotations', expected {WHAT} (JSON, not JSON-MIN)")
        path = _image(node["data"], images)
        entry = Entry(images.id(path), path, node.where)
        entries.append(entry)
        annotation = _annotation(node, omitted)
        if annotation is not None:
            regions = _regions(annotation["result"], omitted)
            tags |= {tag for tag, _, _ in regions.found}
            _label(entry, regions, annotation.where, options)
            omitted.update(
                f"regions of {tag!r}" for tag, _, _ in regions.found if not _wanted(tag, options.map)
            )
    for tag in options.map.values():
        if tag not in tags:
            raise DataError(f"{source}: no region has the from_name {tag!r}{did_you_mean(tag, tags)}")
    notes = [f"left out: {kind}: {count:,}" for kind, count in omitted.items()]
    used = {entry.image for entry in entries}
    left = [path for path in images.files() if path not in used]
    notes += left_out(left, "image file", f"that {source.name} does not list")
    listed: dict[str, list[str]] = {task: [] for task in options.map or [options.task]}
    return annotated(source, options, context, entries, listed, notes)


def _wanted(tag: str, map: Mapping[str, str]) -> bool:
    return not map or tag in map.values()


def _label(entry: Entry, regions: _Regions, where: str, options: Options) -> None:
    """Add the label of each task to the entry of an image."""
    for task in options.map or [options.task]:
        name = options.map.get(task)
        shapes = [(label, shape) for tag, label, shape in regions.found if name in (None, tag)]
        if shapes or options.empty or not regions.found:
            entry.labels[task] = Drawing(shapes, where, regions.size)


def _image(data: Node, images: Images) -> Path:
    """Return the image file of a Label Studio task: the longest tail of its URL that exists in the folder."""
    if not isinstance(data.value, dict):
        raise data.unlike("an object")
    texts = {key: value for key, value in data.value.items() if isinstance(value, str)}
    urls = [key for key, text in texts.items() if any(suffix in text.lower() for suffix in IMAGE_SUFFIXES)]
    keys = urls if len(urls) == 1 else [*texts]
    key = keys[0] if len(keys) == 1 and "image" not in texts else "image"
    url = data[key].path()
    ends = [url]
    if "://" in url or url.startswith("/"):
        try:
            # URLs of images have no fragment, so "#" is part of the file's name.
            parts = urlsplit(url.replace("#", "%23"))
            local = parts.path.startswith("/data/local-files")
            name = parse_qs(parts.query)["d"][0] if local else unquote(parts.path)
        except (ValueError, KeyError):
            raise data[key].unlike("the URL of an image") from None
        pieces = [piece for piece in PurePosixPath(name.replace("\\", "/")).parts if piece != "/"]
        ends = ["/".join(pieces[start:]) for start in range(len(pieces))] or [name]
    paths = [images.path(end, f"{data.where}: {key}") for end in ends]
    return next((path for path in paths if path.is_file()), paths[-1])


def _annotation(task: Node, omitted: Counter[str]) -> Node | None:
    """Return the annotation to use for a Label Studio task; None if it has none.

    Count others in `omitted`.
    """
    submitted = []
    for annotation in task["annotations"].list():
        cancelled = annotation.get("was_cancelled")
        if cancelled is not None and cancelled.value is True:
            omitted["skipped annotations"] += 1
        else:
            submitted.append(annotation)
    if not submitted:
        return None
    omitted.update(["further annotations of an image"] * (len(submitted) - 1))
    true = [a for a in submitted if (truth := a.get("ground_truth")) is not None and truth.value is True]
    return (true or submitted)[-1]


def _regions(results: Node, omitted: Counter[str]) -> _Regions:
    """Return the regions of an annotation that have an area; count what is left out in `omitted`."""
    regions = _Regions()
    nodes = results.list()
    labelled = {_id(node) for node in nodes if node["type"].text().endswith("labels")}
    for node in nodes:
        kind = node["type"].text()
        tool = kind.removesuffix("labels")
        if tool in FLAT:
            omitted[f"{tool} results"] += 1
            continue
        if kind in AREAS and _id(node) in labelled:
            continue  # the export has this region a second time, with its label
        if tool not in (*AREAS, ""):
            raise DataError(
                f"{node.where}: unknown result {kind!r:.60}, expected one of {', '.join((*AREAS, *FLAT))}"
            )
        size = node["original_height"].whole(), node["original_width"].whole()
        if 0 in size or size[0] * size[1] > MAX_PIXELS or regions.size not in (None, size):
            raise DataError(
                f"{node.where}: drawn on {size[1]}x{size[0]} pixels, expected the size of the image"
            )
        if (turn := node.get("image_rotation")) is not None and turn.number():
            raise DataError(f"{node.where}: the image was rotated in the tool, expected image_rotation 0")
        chosen = node["value"].get(kind)
        labels = [] if chosen is None else [label.text() for label in chosen.list()]
        if len(labels) > 1:
            raise DataError(f"{node.where}: {plural(len(labels), 'label')}, expected one for each region")
        shape = _shape(node["value"], tool, size)
        if isinstance(shape, str):
            omitted[shape] += 1
            continue
        if not labels:
            omitted["regions without a label, whose pixels are ignored"] += 1
        tag = node.get("from_name")
        regions.size = size
        regions.found.append(("" if tag is None else tag.text(), labels[0] if labels else VOID, shape))
    return regions


def _id(node: Node) -> str:
    id = node.get("id")
    return "" if id is None else str(id.value)


def _shape(value: Node, tool: str, size: tuple[int, int]) -> Shape | str:
    """Convert a region from percent of the image to pixels; if it has no area, return its description."""
    height, width = size
    if "rle" in value.value:
        packed = value["rle"].numbers()
        if packed.ndim != 1 or (packed < 0).any() or (packed > 255).any():
            raise value["rle"].unlike("a list of bytes")
        return _Brush(packed.astype(np.uint8).tobytes(), size)
    if "points" in value.value:
        points = value["points"].numbers()
        if points.ndim != 2 or points.shape[1] != 2:
            raise value["points"].unlike("points [x, y]")
        if len(points) < 3:
            return "polygon regions of fewer than three points"
        return Polygon((points * (width / 100, height / 100),))
    if tool == "" and "radiusX" not in value.value and "height" not in value.value:
        return "keypoint results"
    turn = value.get("rotation")
    degrees = 0.0 if turn is None else turn.number()
    x, y = value["x"].number() * width / 100, value["y"].number() * height / 100
    if "radiusX" in value.value:
        radii = value["radiusX"].number() * width / 100, value["radiusY"].number() * height / 100
        return Ellipse(x, y, *radii, degrees)
    sides = value["width"].number() * width / 100, value["height"].number() * height / 100
    return turned_box(x, y, *sides, degrees, (x, y))


@dataclass(frozen=True)
class _Brush:
    """A brush mask of an image of `size`, unpacked only when it is painted.

    It consists of RGBA pixels, of which only alpha is used, as a stream of bits::

        header   number of values (32 bits), bits of a value - 1 (5), four bit lengths - 1 (4 each)
        blocks   1 if one value repeats, else 0 (1 bit); which of the four bit lengths the count has (2 bits);
                 the count - 1 (of that length); the value, or `count` values
    """

    packed: bytes
    size: tuple[int, int]

    def paint(self, ids: np.ndarray, value: int) -> None:
        bits = "".join(f"{byte:08b}" for byte in self.packed)
        place = 0

        def take(count: int) -> int:
            nonlocal place
            if place + count > len(bits):
                raise ValueError("rle: ends too early, expected all pixels of the image")
            place += count
            return int(bits[place - count : place], 2)

        total, word = take(32), take(5) + 1
        lengths = [take(4) + 1 for _ in range(4)]
        height, width = self.size
        if total != height * width * 4:
            raise ValueError(
                f"rle: {total} values, expected {height * width * 4}, RGBA of {width}x{height} pixels"
            )
        values = np.zeros(total, np.uint8)
        start = 0
        while start < total:
            repeats = take(1)
            end = start + 1 + take(lengths[take(2)])
            if end > total:
                raise ValueError(f"rle: goes beyond the image, expected {total} values")
            count = 1 if repeats else end - start
            values[start:end] = [take(word) & 255 for _ in range(count)]
            start = end
        Bitmap(values.reshape(height, width, 4)[:, :, 3] > 0).paint(ids, value)


LABEL_STUDIO = Format(
    read_label_studio, frozenset({"images", "task", "classes", "ignore", "background", "empty", "map"})
)
