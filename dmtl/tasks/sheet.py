"""Arrange several pictures with captions on one sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmtl.tasks.base import Legend

TILE = 420  # pixels, longest side of a picture on a sheet
GAP, LINE = 12, 26  # pixels between pictures, and of a caption
LEGEND_LINE, LEGEND_LINES = 18, 2  # pixels of a line of a legend, and number of lines
TEXT, FRAME = (40, 44, 52), (160, 160, 160)  # colours


def sheet(
    pictures: Iterable[tuple[str, np.ndarray | None]],
    columns: int | None = None,
    legends: Mapping[str, Legend] | None = None,
) -> np.ndarray:
    """Arrange pictures with captions on one sheet, in reading order; large pictures are scaled down.

    Args:
        pictures: (caption, uint8 [H, W, 3]) pairs; None instead of a picture leaves a gap.
        columns: number of pictures in a row; None: chosen by the number of pictures.
        legends: legends by caption, drawn below their pictures; what does not fit is cut with "...".

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
    # The size does not depend on the length of the legends, so that all frames of a video have the same.
    pitch = height + LINE + (LEGEND_LINES * LEGEND_LINE if legends else 0)
    paper = Image.new("RGB", (columns * (width + GAP) + GAP, rows * pitch + GAP), "white")
    draw = ImageDraw.Draw(paper)
    for i, (caption, image) in enumerate(tiles):
        if image is None:
            continue
        x, y = GAP + (i % columns) * (width + GAP), (i // columns) * pitch
        draw.text((x, y + 5), caption, fill=TEXT, font=font)
        paper.paste(image, (x, y + LINE))
        if legends and caption in legends:
            _draw_legend(draw, legends[caption], x, y + LINE + image.height, width)
    return np.asarray(paper)


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Legend, x: int, y: int, width: int) -> None:
    """Draw coloured squares with names, line by line."""
    font, left, line = ImageFont.load_default(12), x, 0
    right, last, dots = x + width, LEGEND_LINES - 1, GAP + math.ceil(font.getlength("..."))
    for name, colour in legend:
        length = 15 + math.ceil(font.getlength(name))
        if left + length > right and line < last:
            left, line = x, line + 1
        top = y + 3 + line * LEGEND_LINE
        if left + length > right - (dots if line == last else 0):
            draw.text((left, top), "...", fill=TEXT, font=font)
            return
        draw.rectangle((left, top + 3, left + 10, top + 13), fill=colour, outline=FRAME)
        draw.text((left + 15, top), name, fill=TEXT, font=font)
        left += length + GAP


def _reduced(rgb: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(rgb))
    image.thumbnail((TILE, TILE), Image.Resampling.BOX)
    return image
