"""Pictures for the page: PNG data URIs, and the label matrix as a strip."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from dmtl.report.html.content import Labels

MAX_SIDE = 320  # pixels; larger pictures are reduced, so that the page stays small
MIN_SIDE = 96  # pixels; smaller pictures are magnified in blocks, not smoothed
MAX_COLUMNS = 400  # images drawn in the label strip


@dataclass(frozen=True)
class Picture:
    """A data URI, its size in pixels, and whether it is so small that it is best shown as blocks."""

    uri: str
    width: int
    height: int
    small: bool


def picture(rgb: np.ndarray) -> Picture:
    """uint8 [H, W, 3] to an embedded PNG. ValueError for any other array."""
    if (
        not isinstance(rgb, np.ndarray)
        or rgb.dtype != np.uint8
        or rgb.ndim != 3
        or rgb.shape[2] != 3
        or not rgb.size
    ):
        got = f"{rgb.dtype} {list(rgb.shape)}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise ValueError(f"picture: rgb must be a uint8 array [H, W, 3], got {got}")
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if max(image.size) > MAX_SIDE:
        scale = MAX_SIDE / max(image.size)
        size = tuple(max(1, round(s * scale)) for s in image.size)
        image = image.resize(size, Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(uri, image.width, image.height, max(image.size) < MIN_SIDE)


def label_strips(labels: Labels) -> list[dict]:
    """One row a task: name, number and share of labelled images, and an SVG strip with a bar for each.

    Only the first 400 images are drawn; the counts are of all.
    """
    matrix = np.asarray(labels.matrix, dtype=bool)
    if matrix.shape != (len(labels.ids), len(labels.tasks)):
        raise ValueError(
            f"label_strips: matrix must be bool [{len(labels.ids)}, {len(labels.tasks)}] (ids, tasks), "
            f"got {list(matrix.shape)}"
        )
    shown = matrix[:MAX_COLUMNS]
    rows = []
    for column, task in enumerate(labels.tasks):
        count = int(matrix[:, column].sum())
        share = count / max(len(matrix), 1)
        rows.append(
            {
                "task": task,
                "count": count,
                "share": share,
                "svg": _strip(shown[:, column], task, column, count),
            }
        )
    return rows


def _strip(labelled: np.ndarray, task: str, column: int, count: int) -> Markup:
    size = max(len(labelled), 1)
    gap = 0.18 if size <= 160 else 0.0  # separate bars while they are wide enough to be told apart
    bars = "".join(f"M{i} 0h{1 - gap:g}v1H{i}z" for i in np.flatnonzero(labelled))
    label = escape(f"{task}: {count} labelled images")
    box = f'viewBox="0 0 {size} 1" preserveAspectRatio="none"'
    path = f'<path class="fill s{column % 7 + 1}" d="{bars}"/>'
    return Markup(f'<svg class="strip" {box} role="img" aria-label="{label}">{path}</svg>')
