"""Encode predictions as PNG and .npy files, in the natural format of each kind.

`Task.map_to_pixels` chooses the format:

    classes      8-bit palette PNG; the pixel value is the class id, the palette makes it a picture
                 (16-bit grey above 256 classes)
    binary       8-bit grey PNG; probability = value / 255
    distance     16-bit grey PNG in millimetres; metres = value / 1000; as a scalar if millimetres cannot
                 hold it
    scalar       16-bit grey PNG; value = offset + scale * pixel, with scale and offset of each image in
                 maps.json and in the PNG itself (text chunk "dmtl")
    unit_vector  8-bit RGB PNG; component = value / 127.5 - 1; also float16 .npy [3, H, W] on request
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dmtl.data.folder.paths import read_text
from dmtl.data.images import png_bytes
from dmtl.errors import DataError
from dmtl.tasks import Task
from dmtl.tasks.stored import LINEAR, Pixels, linear_pixels

FORMAT = "dmtl maps 1"


def read_index(folder: Path) -> dict | None:
    """Return the content of maps.json in a folder of maps; None if there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "maps.json"
    if not os.path.isfile(path):
        return None
    try:
        index = json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        raise DataError(f"{path}: not readable, expected what `dmtl predict` writes")
    return index


def holds_maps(folder: Path) -> bool:
    """Return whether `dmtl predict` or `dmtl eval --save-maps` wrote the folder, judged by its maps.json."""
    try:
        return (read_index(folder) or {}).get("format") == FORMAT
    except DataError:  # a maps.json of another program
        return False


def encode_map(task: Task, map: Tensor) -> tuple[bytes, dict]:
    """Encode a decoded map, [H, W] or [K, H, W] for vectors, as PNG.

    Returns:
        The file's content, and how to read it: {"offset": ..., "scale": ...} for scalars. For other kinds
        this is empty, because all their files are read in the same way (`Task.map_format`).
    """
    return _encode(task.map_to_pixels(map.detach().cpu().numpy()))


def encode_scalar(value_HW: np.ndarray) -> tuple[bytes, dict]:
    """Encode numbers as a 16-bit grey PNG; return it and the {"offset": ..., "scale": ...} to read it.

    The PNG also contains offset and scale.
    """
    return _encode(linear_pixels(value_HW))


def describe_uncertainty(task: Task) -> dict:
    """Return a description for maps.json of how to read the uncertainty maps of a task."""
    return {"means": f"{task.words.uncertainty} in {task.uncertainty_unit}", "png": LINEAR}


def _encode(pixels: Pixels) -> tuple[bytes, dict]:
    image = Image.fromarray(np.ascontiguousarray(pixels.values))
    if pixels.palette is not None:
        image.putpalette(pixels.palette.tobytes())
    return png_bytes(image, level=4, reading=pixels.reading), pixels.reading
