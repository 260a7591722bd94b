"""CVAT: the XML file of "CVAT for images 1.1".

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. The file lists every image of a
CVAT task, annotated or not. So an image without shapes has no label, unless the option `empty` says that such
images were annotated and contain no objects. For CVAT's "Segmentation mask 1.1" use the format "voc".
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

from dmtl.data.imports.dataset import Drawing, Entry
from dmtl.data.imports.files import Images, Node, attributes, left_out, numbers_of, read_xml, unique_names
from dmtl.data.imports.format import Context, Format, Found, Options, annotated
from dmtl.data.imports.shapes import Ellipse, Polygon, Runs, Shape, turned_box
from dmtl.errors import DataError
from dmtl.text import plural

FLAT = ("polyline", "points", "tag", "cuboid", "skeleton")
"""Types of shapes without an area, as labels and as elements of an image; they are left out."""
_AREAS = ("box", "polygon", "ellipse", "mask")


def read_cvat(source: Path, options: Options, context: Context) -> Found:
    """Read boxes, polygons, ellipses and masks, drawn by `z_order`; equal ones in the order of the file."""
    source = source / "annotations.xml" if source.is_dir() else source
    root = read_xml(source, "an XML file of CVAT")
    if root.tag != "annotations" or root.find("track") is not None:
        what = "tracks of a video" if root.tag == "annotations" else f"<{root.tag[:30]}>"
        raise DataError(f'{source}: {what}, expected an export as "CVAT for images 1.1"')
    beside = source.parent / "images"
    folder = Images(options.images or (beside if beside.is_dir() else source.parent))
    entries: list[Entry] = []
    flat: Counter[str] = Counter()
    for number, element in enumerate(root.iter("image")):
        where = f"{source}: image {number + 1}"
        facts = attributes(element, where)
        name = Node(element.get("name"), f"{where}: name").path()
        where = f"{where} ({name[:80]!r})"
        split = element.get("subset", "")
        path = folder.path(name, where)
        if split and not path.is_file() and (below := folder.path(f"{split}/{name}", where)).is_file():
            path = below
        entry = Entry(folder.id(path), path, where, split=split)
        shapes = _shapes(element, where, flat)
        if shapes or options.empty:
            size = (facts["height"].whole(), facts["width"].whole())
            entry.labels[options.task] = Drawing(shapes, where, size)
        entries.append(entry)
    used = {entry.image for entry in entries}
    left = [path for path in folder.files() if path not in used]
    notes = [f"left out: {plural(count, f'{kind} shape')}, without an area" for kind, count in flat.items()]
    notes += left_out(left, "image file", f"that {source.name} does not list")
    return annotated(source, options, context, entries, {options.task: _labels(root, source)}, notes)


def _labels(root: Element, source: Path) -> list[str]:
    """Return the labels of the task that can cover pixels, in the order of the file."""
    meta = root.find("meta")
    found = []
    for number, element in enumerate([] if meta is None else meta.iter("label")):
        where = f"{source}: label {number + 1}"
        if element.find("parent") is None and element.findtext("type", "any").strip() not in FLAT:
            found.append((Node(element.findtext("name", "").strip(), where).text(), where))
    return list(unique_names(found, "label"))


def _shapes(image: Element, where: str, flat: Counter[str]) -> list[tuple[str, Shape]]:
    """Return (label, shape) of an image's shapes, the lowest first; count those without an area in `flat`."""
    found: list[tuple[float, str, Shape]] = []
    for number, element in enumerate(image):
        if element.tag in FLAT:
            flat[element.tag] += 1
            continue
        node = attributes(element, f"{where}: shape {number + 1}, <{element.tag[:30]}>")
        if element.tag not in _AREAS:
            raise DataError(f"{node.where}: unknown shape, expected one of {', '.join((*_AREAS, *FLAT))}")
        label = Node(element.get("label"), f"{node.where}: label").text()
        order = node.get("z_order")
        found.append((0 if order is None else order.number(), label, _area(element.tag, node)))
    return [(label, shape) for _, label, shape in sorted(found, key=lambda each: each[0])]


def _area(tag: str, node: Node) -> Shape:
    rotation = node.get("rotation")
    degrees = 0.0 if rotation is None else rotation.number()
    if tag == "box":
        x0, y0, x1, y1 = (node[key].number() for key in ("xtl", "ytl", "xbr", "ybr"))
        return turned_box(x0, y0, x1 - x0, y1 - y0, degrees, ((x0 + x1) / 2, (y0 + y1) / 2))
    if tag == "ellipse":
        x, y, radius_x, radius_y = (node[key].number() for key in ("cx", "cy", "rx", "ry"))
        return Ellipse(x, y, radius_x, radius_y, degrees)
    if tag == "mask":
        left, top, width, height = (node[key].whole() for key in ("left", "top", "width", "height"))
        return Runs(numbers_of(node["rle"]), (height, width), left, top, by_column=False)
    points = numbers_of(node["points"], ",;")
    if len(points) < 6 or len(points) % 2:
        raise node["points"].unlike("at least three points x,y;x,y;...")
    return Polygon((points.reshape(-1, 2),))


CVAT = Format(read_cvat, frozenset({"images", "task", "classes", "ignore", "background", "empty"}))
