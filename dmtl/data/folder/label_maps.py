"""Read label maps from files, and encode them as files.

These are the tensor and the file of each kind of task:

    classes, binary   uint8 [1, H, W]     grey or palette PNG, or .npy of integers: class ids, or other
                                          values by `values`; or RGB PNG by `colors`
    unit_vector       float32 [3, H, W]   RGB PNG, n = 2 x / 255 - 1, or .npy [H, W, 3]; normalised here
    scalar            float32 [1, H, W]   grey PNG (8 or 16 bit) times `scale`, 0 = unknown; .npy [H, W] of
                                          floats; or .npy of integers (times `scale` if it is set)

Unknown pixels have the task's `ignore` value.
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
)  # keys of dataset.yaml that say how files are read, not what the task is


def read_label(path: Path | Member, task: Task, **reading: Any) -> Tensor:
    """Read a label map, [K, H, W] in the task's dtype.

    Args:
        path: a PNG, TIFF or .npy file, or a member of a shard.
        task: the task of the label.
        reading: options for reading the file, as `Task.reading` returns them.

    Raises:
        DataError: the file is damaged, or its values are not allowed for the task; the message names it.
    """
    found = read_stored(path, colours="colors" in reading)
    values, numbers = found.values, found.numbers
    if found.reading is not None:
        scale, offset = found.reading
        values, numbers = (values * scale + offset).astype(np.float32), True
        reading.pop("scale", None)  # the scale in the file replaces it
    return decode_label(values, task, path, numbers=numbers, **reading)


def read_stored(path: Path | Member, *, colours: bool = False) -> Codes:
    """Read the stored values of a .npy, PNG or TIFF file; with `colours`, the RGB colours of a picture."""
    if path.suffix.lower() == ".npy":
        return Codes(read_npy(path), numbers=True)
    return read_codes(path, colours=colours)


def decode_label(
    stored: np.ndarray, task: Task, where: str | Path | Member, *, numbers: bool, **reading: Any
) -> Tensor:
    """Decode stored values with `Task.label_from_stored`; messages of errors (DataError) begin with
    `where`."""
    try:
        return task.label_from_stored(stored, numbers=numbers, **reading)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def label_file(stored: np.ndarray) -> tuple[str, bytes]:
    """Return suffix and content of a file with stored values: PNG for uint8, .npy for others."""
    return (".png", png_bytes(stored)) if stored.dtype == np.uint8 else (".npy", npy_bytes(stored))
