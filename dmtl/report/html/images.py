"""Make pictures for the page: PNG data URIs, and the label matrix as strips."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from dmtl.data import LabelMatrix
from dmtl.data.images import png_bytes
from dmtl.data.loading.order import evenly
from dmtl.text import plural

MAX_SIDE = 320  # pixels; larger pictures are downscaled to keep the page small
MIN_SIDE = 96  # pixels; smaller pictures are enlarged in blocks, without smoothing
MAX_COLUMNS = 400  # maximum number of images in a strip


class Picture(NamedTuple):
    """A data URI, its size in pixels, and whether to enlarge it in blocks."""

    uri: str
    width: int
    height: int
    small: bool


def picture(rgb: np.ndarray) -> Picture:
    """Embed an array, uint8 [H, W, 3], as a PNG; raise ValueError for any other array."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        got = f"{rgb.dtype} {list(rgb.shape)}"
        raise ValueError(f"picture: rgb must be a uint8 array [H, W, 3], got {got}")
    image = Image.fromarray(np.ascontiguousarray(rgb))
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    uri = "data:image/png;base64," + base64.b64encode(png_bytes(image, level=9)).decode("ascii")
    return Picture(uri, image.width, image.height, max(image.size) < MIN_SIDE)


def label_section(labels: LabelMatrix | None, sources: Iterable[str] = ()) -> dict | None:
    """Return the numbers of labels, of all images and of each source, and an SVG strip for each task.

    A strip has a bar for every labelled image. At most 400 images are drawn, evenly spread; the numbers cover
    all.
    """
    if labels is None or not len(labels.ids):
        return None
    facts, parts = labels.statistics(), labels.of_sources(sources)
    drawn = evenly(len(labels), MAX_COLUMNS)
    each = [(n, images) for n, images in facts["labels_per_image"].items() if images]
    return {
        "rows": [
            (task, count, _strip(labels.column(task)[drawn], task, column, count))
            for column, (task, count) in enumerate(facts["per_task"].items())
        ],
        "sources": [(name, len(part), part.matrix.sum(0).tolist()) for name, part in parts.items()],
        "images": facts["images"],
        "shown": min(facts["images"], MAX_COLUMNS),
        "total": facts["labels"],
        "share": 100 * facts["labels"] / labels.matrix.size,
        "split": ", ".join(f"{images} with {plural(int(n), 'label')}" for n, images in each),
    }


def _strip(labelled: np.ndarray, task: str, column: int, count: int) -> Markup:
    size = max(len(labelled), 1)
    gap = 0.18 if size <= 160 else 0.0  # separate the bars if they are wide enough
    bars = "".join(f"M{i} 0h{1 - gap:g}v1H{i}z" for i in np.flatnonzero(labelled))
    label = escape(f"{task}: {count} labelled images")
    box = f'viewBox="0 0 {size} 1" preserveAspectRatio="none"'
    path = f'<path class="fill s{column % 7 + 1}" d="{bars}"/>'
    return Markup(f'<svg class="strip" {box} role="img" aria-label="{label}">{path}</svg>')
