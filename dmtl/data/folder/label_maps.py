"""Label maps as files: from pixels in their natural format to the project's terms, and back.

    classes, binary   uint8 [1, H, W]     PNG, grey or palette indices (or .npy of integers), as they are,
                                          by `values`, or RGB by `colors`
    unit_vector       float32 [3, H, W]   RGB PNG, n = 2 x / 255 - 1, or .npy [H, W, 3]; normalised here
    scalar            float32 [1, H, W]   grey PNG (8 or 16 bit) times `scale`, 0 = unknown, or .npy [H, W]
                                          of floats, or of integers (times `scale` if it is given)

Pixels without meaning hold the task's `ignore` value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmtl.data.images import Codes, npy_bytes, png_bytes, read_codes, read_npy
from dmtl.data.shards.member import Member
from dmtl.errors import DataError
from dmtl.tasks import Task

READING_OPTIONS = (
    "scale",
    "unknown",
    "values",
    "colors",
)  # keys of dataset.yaml that concern the files, not the task


def read_label(path: Path | Member, task: Task, **reading: Any) -> Tensor:
    """Return the label map [K, H, W] at `path`; `reading` is what `Task.reading` gives.

    Raises DataError naming the file when it is damaged or its values are not what the task allows.
    """
    found = read_stored(path, colours="colors" in reading)
    values, numbers = found.values, found.numbers
    if found.reading is not None:
        scale, offset = found.reading
        values, numbers = (values * scale + offset).astype(np.float32), True
        reading.pop("scale", None)  # the file has its own
    return decode_label(values, task, path, numbers=numbers, **reading)


def read_stored(path: Path | Member, *, colours: bool = False) -> Codes:
    """Return what a .npy, PNG or TIFF file holds; of a picture with `colours`, its colours."""
    if path.suffix.lower() == ".npy":
        return Codes(read_npy(path), numbers=True)
    return read_codes(path, colours=colours)


def decode_label(
    stored: np.ndarray, task: Task, where: str | Path | Member, *, numbers: bool, **reading: Any
) -> Tensor:
    """Return `Task.label_from_stored`; `where` begins the message of its error."""
    try:
        return task.label_from_stored(stored, numbers=numbers, **reading)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def label_file(stored: np.ndarray) -> tuple[str, bytes]:
    """Suffix and content of the file for stored values: PNG for uint8, .npy for numbers."""
    return (".png", png_bytes(stored)) if stored.dtype == np.uint8 else (".npy", npy_bytes(stored))
