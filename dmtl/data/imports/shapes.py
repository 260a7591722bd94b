"""Paint the shapes of annotation tools into a map of class ids.

The same rule holds for all shapes: a pixel belongs to a shape if its centre is inside. Coordinates are in
pixels from the top left corner of the image, so the first pixel's centre is (0.5, 0.5). Polygons are filled
by pycocotools, like COCO's own masks. Parts outside the image are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dmtl.data.imports.files import package

MAX_OUTLINE = 2_000_000  # pixels; pycocotools allocates about 100 bytes for each


class Shape(Protocol):
    def paint(self, ids: np.ndarray, value: int) -> None:
        """Set the pixels of the shape to `value` in `ids`, uint8 [H, W].

        Raises:
            ValueError: the shape does not fit an image of this size; the message says why.
        """


@dataclass(frozen=True)
class Polygon:
    """The union of one or more polygons, each float64 [N, 2] of points (x, y) with N at least 3."""

    outlines: tuple[np.ndarray, ...]

    def paint(self, ids: np.ndarray, value: int) -> None:
        coco = package("pycocotools.mask", "import", "polygons")
        for outline in self.outlines:
            _check_near(outline, ids.shape)
            steps = np.abs(np.diff(outline, axis=0, append=outline[:1])).max(1)
            if steps.sum() > MAX_OUTLINE:
                raise ValueError(f"an outline of {steps.sum():.0f} pixels, expected at most {MAX_OUTLINE}")
            window, (left, top) = _window(ids, *outline.min(0), *outline.max(0))
            if window.size:
                local = (outline - (left, top)).ravel().tolist()
                window[coco.decode(coco.frPyObjects([local], *window.shape))[:, :, 0] > 0] = value


@dataclass(frozen=True)
class Box:
    """An upright rectangle with opposite corners (x0, y0) and (x1, y1), in any order."""

    x0: float
    y0: float
    x1: float
    y1: float

    def paint(self, ids: np.ndarray, value: int) -> None:
        _check_near(np.array([[self.x0, self.y0], [self.x1, self.y1]]), ids.shape)
        (x0, x1), (y0, y1) = sorted((self.x0, self.x1)), sorted((self.y0, self.y1))
        top, left, bottom, right = (max(0, math.ceil(side - 0.5)) for side in (y0, x0, y1, x1))
        ids[top:bottom, left:right] = value


@dataclass(frozen=True)
class Ellipse:
    """An ellipse with its centre at (x, y), turned clockwise by `degrees`."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    degrees: float = 0.0

    def paint(self, ids: np.ndarray, value: int) -> None:
        reach = max(self.radius_x, self.radius_y)
        corners = np.array([[self.x - reach, self.y - reach], [self.x + reach, self.y + reach]])
        _check_near(corners[:1] + reach, ids.shape)
        if min(self.radius_x, self.radius_y) <= 0:
            return
        window, (left, top) = _window(ids, *corners[0], *corners[1])
        y, x = np.mgrid[: window.shape[0], : window.shape[1]]
        x, y = x + (left + 0.5 - self.x), y + (top + 0.5 - self.y)
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        along, across = (x * cos + y * sin) / self.radius_x, (y * cos - x * sin) / self.radius_y
        window[along * along + across * across <= 1] = value


@dataclass(frozen=True)
class Bitmap:
    """A mask, bool [h, w], whose first pixel is at (left, top) in the image."""

    mask: np.ndarray
    left: int = 0
    top: int = 0

    def paint(self, ids: np.ndarray, value: int) -> None:
        height, width = self.mask.shape
        y, x = max(0, -self.top), max(0, -self.left)
        window = ids[max(0, self.top) : max(0, self.top + height), max(0, self.left) : self.left + width]
        if not window.size and self.mask.any():
            raise ValueError(f"a mask at ({self.left}, {self.top}), expected it inside {_size(ids.shape)}")
        window[self.mask[y : y + window.shape[0], x : x + window.shape[1]]] = value


@dataclass(frozen=True)
class Runs:
    """A run-length encoded mask.

    Attributes:
        lengths: lengths of alternate runs of zeros and ones, or COCO's compressed string of them.
        size: (height, width) of the mask.
        left: column of its first pixel in the image.
        top: row of its first pixel in the image.
        by_column: the runs go down the columns, as in COCO; otherwise along the rows.
    """

    lengths: np.ndarray | str
    size: tuple[int, int]
    left: int = 0
    top: int = 0
    by_column: bool = True

    def paint(self, ids: np.ndarray, value: int) -> None:
        lengths = coco_lengths(self.lengths) if isinstance(self.lengths, str) else self.lengths
        height, width = self.size
        if self.top + height > ids.shape[0] or self.left + width > ids.shape[1]:
            raise ValueError(
                f"a mask of {_size(self.size)} at ({self.left}, {self.top}), "
                f"expected it inside {_size(ids.shape)}"
            )
        if (lengths < 0).any() or (lengths != np.floor(lengths)).any() or lengths.sum() != height * width:
            raise ValueError(
                f"runs of {lengths.sum():.0f} pixels in all, expected {height * width} ({_size(self.size)})"
            )
        values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths.astype(np.int64))
        mask = values.reshape(self.size, order="F" if self.by_column else "C")
        ids[self.top : self.top + height, self.left : self.left + width][mask] = value


def coco_lengths(text: str) -> np.ndarray:
    """Return the run lengths in COCO's compressed string.

    A character holds five bits of a number. From the fourth number on, the string stores the difference from
    the length two places before. pycocotools does not check such a string and may read beyond its end.

    Raises:
        ValueError: the string has an invalid character or ends within a number.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 40:
            raise ValueError(f"invalid character {character!r} in its compressed runs")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4 & 1) << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its compressed runs end within a number")
    return np.array(lengths, np.float64)


def turned_box(
    x: float, y: float, width: float, height: float, degrees: float, about: Sequence[float]
) -> Box | Polygon:
    """Return a box with the top left corner (x, y), turned clockwise by `degrees` around the point
    `about`."""
    if not degrees:
        return Box(x, y, x + width, y + height)
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Polygon(((corners - about) @ np.array([[cos, sin], [-sin, cos]]) + about,))


def _check_near(points: np.ndarray, size: tuple[int, ...]) -> None:
    """Raise ValueError for points that are farther from the image than its own size.

    Such points are likely those of another image.
    """
    limit = np.array([size[1], size[0]])
    far = (points < -limit) | (points > 2 * limit)
    if far.any():
        x, y = points[far.any(1)][0]
        raise ValueError(f"a point at ({x:g}, {y:g}), far outside the image of {_size(size)}")


def _window(
    ids: np.ndarray, x0: float, y0: float, x1: float, y1: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of `ids` that covers a range of coordinates, and its (left, top)."""
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    return ids[top : max(0, math.ceil(y1) + 1), left : max(0, math.ceil(x1) + 1)], (left, top)


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]} pixels"
