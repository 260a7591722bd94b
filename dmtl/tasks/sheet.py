"""Arrange several pictures with captions on one sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 420  # pixels, longest side of a picture on a sheet
GAP, LINE = 12, 26  # pixels between pictures, and of a caption


def sheet(pictures: Iterable[tuple[str, np.ndarray | None]], columns: int | None = None) -> np.ndarray:
    """Arrange pictures with captions on one sheet, in reading order; large pictures are scaled down.

    Args:
        pictures: (caption, uint8 [H, W, 3]) pairs; None instead of a picture leaves a gap.
        columns: number of pictures in a row; None: chosen by the number of pictures.

    Returns:
        uint8 [H', W', 3].
    """
    tiles = [(caption, None if rgb is None else _reduced(rgb)) for caption, rgb in pictures]
    images = [image for _, image in tiles if image is not None]
    font = ImageFont.load_default(15)
    # Captions need some room under a tiny picture.
    width = max(
        *(i.width for i in images), *(math.ceil(font.getlength(caption)) for caption, _ in tiles), 120
    )
    height = max(i.height for i in images)
    columns = columns or min(len(tiles), 4 if len(tiles) > 6 else 3 if len(tiles) != 4 else 2)
    rows = -(-len(tiles) // columns)
    paper = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + LINE) + GAP), "white")
    draw = ImageDraw.Draw(paper)
    for i, (caption, image) in enumerate(tiles):
        if image is None:
            continue
        x, y = GAP + (i % columns) * (width + GAP), (i // columns) * (height + LINE)
        draw.text((x, y + 5), caption, fill=(40, 44, 52), font=font)
        paper.paste(image, (x, y + LINE))
    return np.asarray(paper)


def _reduced(rgb: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(rgb))
    image.thumbnail((TILE, TILE), Image.Resampling.BOX)
    return image
