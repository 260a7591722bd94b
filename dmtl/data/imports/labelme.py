"""LabelMe: a JSON file next to each image.

Format: https://github.com/wkentaro/labelme. An image without a JSON file has no label; a file without shapes
means that the image contains no objects. LabelMe turns images by their orientation tags, so labels fit the
turned images.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from dmtl.data.images import MAX_PIXELS
from dmtl.data.imports.dataset import Drawing, Entry
from dmtl.data.imports.files import Images, Node, read_json
from dmtl.data.imports.format import Context, Format, Found, Options, annotated
from dmtl.data.imports.legend import VOID
from dmtl.data.imports.shapes import Bitmap, Box, Ellipse, Polygon, Shape
from dmtl.errors import DataError, one_line
from dmtl.text import plural

FLAT = ("point", "points", "line", "linestrip")  # shapes without an area
IGNORED = "__ignore__"  # in LabelMe's own exporters this label is not a class: its pixels are ignored
_POINTS = {"rectangle": (2, 4), "circle": (2,), "mask": (2,), "oriented_rectangle": (4,)}


def read_labelme(source: Path, options: Options, context: Context) -> Found:
    """Read polygons, rectangles, circles and masks, drawn in the order of each file; leave out points and
    lines."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder, expected one with a LabelMe JSON file for each image")
    here = Images(source)
    if not (files := here.files(suffixes=(".json",))):
        raise DataError(f"{source}: no LabelMe JSON files in it, expected one for each labelled image")
    images = here if options.images is None else Images(options.images)
    entries = {path: Entry(images.id(path), path, str(path)) for path in images.files()}
    flat: Counter[str] = Counter()
    for file in files:
        root = read_json(file, "a LabelMe file")
        path = _image_path(root["imagePath"], file, here, images)
        entry = entries.setdefault(path, Entry(images.id(path), path, str(file)))
        if entry.labels:
            raise DataError(f"{file}: image {path.name!r} has two annotation files")
        entry.where = str(file)
        shapes = [drawn for node in root["shapes"].list() if (drawn := _shape(node, flat)) is not None]
        sides = [root.get("imageHeight"), root.get("imageWidth")]
        size = None if None in sides else (root["imageHeight"].whole(), root["imageWidth"].whole())
        entry.labels[options.task] = Drawing(shapes, str(file), size)
    notes = [f"left out: {plural(count, f'{kind} shape')}, without an area" for kind, count in flat.items()]
    ordered = sorted(entries.values(), key=lambda entry: entry.id)
    return annotated(source, options, context, ordered, {options.task: []}, notes)


def _image_path(node: Node, file: Path, here: Images, images: Images) -> Path:
    """Return the path of a file's image: relative to the file's folder, or else its name below `images`."""
    name = PureWindowsPath(node.path()).as_posix()
    if images is here and not PureWindowsPath(name).is_absolute() and not PurePosixPath(name).is_absolute():
        beside = os.path.normpath((file.parent / name).relative_to(here.root))
        return here.path(PurePosixPath(beside).as_posix(), file)
    if images is here:
        raise DataError(
            f"{node.where}: {name!r:.200}, expected a path relative to this file; otherwise name the images' "
            "folder with --images"
        )
    short = PurePosixPath(name).name
    below = (file.parent.relative_to(here.root) / short).as_posix()
    found = images.path(below, file)
    return found if found.is_file() else images.path(short, file)


def _shape(node: Node, flat: Counter[str]) -> tuple[str, Shape] | None:
    """Return the label and shape of an entry; if it has no area, count it in `flat` and return None."""
    kind = node.get("shape_type")
    name = "polygon" if kind is None else kind.text()
    label = node["label"].text()
    label = VOID if label == IGNORED else label
    if name in FLAT:
        flat[name] += 1
        return None
    points = node["points"].numbers()
    if points.ndim != 2 or points.shape[1] != 2:
        raise node["points"].unlike("points [x, y]")
    if name == "polygon" and len(points) < 3:
        flat["thin polygon"] += 1
        return None
    counts = _POINTS.get(name)
    if counts and len(points) not in counts:
        expected = " or ".join(map(str, counts))
        raise DataError(f"{node.where}: {name} of {plural(len(points), 'point')}, expected {expected}")
    if name == "rectangle" and len(points) == 2:
        return label, Box(*points.ravel().tolist())
    if name == "circle":
        (x, y), rim = points[0].tolist(), points[1]
        radius = math.dist(points[0], rim)
        return label, Ellipse(x, y, radius, radius)
    if name == "mask":
        mask = node["mask"]
        if not isinstance(mask.value, str):
            raise mask.unlike("a PNG file in base64")
        return label, _Mask(mask.value, points)
    if name in ("polygon", "rectangle", "oriented_rectangle"):
        return label, Polygon((points,))
    known = ", ".join(["polygon", *_POINTS, *FLAT])
    raise DataError(f"{node.where}: unknown shape {name!r:.60}, expected one of {known}")


@dataclass(frozen=True)
class _Mask:
    """A mask as a PNG file in base64 between two corners `points`, [2, 2]; decoded only when it is
    painted."""

    text: str
    points: np.ndarray

    def paint(self, ids: np.ndarray, value: int) -> None:
        try:
            content = base64.b64decode(self.text, validate=True)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"{picture.width}x{picture.height} pixels")
                mask = np.asarray(picture) != 0
        except (binascii.Error, OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"mask: {one_line(error)}, expected a PNG file in base64") from None
        corners = np.rint(self.points).astype(int)
        left, top = corners.min(0).tolist()
        width, height = (np.ptp(corners, axis=0) + 1).tolist()
        if mask.ndim != 2 or abs(mask.shape[0] - height) > 1 or abs(mask.shape[1] - width) > 1:
            raise ValueError(
                f"mask: pixels of shape {list(mask.shape)}, expected [{height}, {width}] of its points"
            )
        Bitmap(mask, left, top).paint(ids, value)


LABELME = Format(read_labelme, frozenset({"images", "task", "classes", "ignore", "background"}))
