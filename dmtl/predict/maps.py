"""Decoded maps as files: the natural format of each kind, with nothing lost that the format can hold.

classes      8-bit palette PNG; the pixel value is the class id, the palette makes it a picture
             (16-bit grey above 256 classes)
binary       8-bit grey PNG; probability = value / 255
distance     16-bit grey PNG in millimetres; metres = value / 1000, at most 65.535
scalar       16-bit grey PNG; value = offset + scale * pixel, both given for each image in maps.json and
             in the PNG itself (text chunk "dmtl")
unit_vector  8-bit RGB PNG; component = value / 127.5 - 1; also float16 .npy [3, H, W] on request
"""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dmtl.tasks import Task
from dmtl.tasks.palette import EMBER, apply_scale

_NUMBERS = "16-bit grey; value = offset + scale * pixel, with offset and scale of each image"


def describe_format(task: Task) -> dict:
    """How to read the files of this task, for maps.json."""
    if task.kind == "classes":
        bits = "8-bit palette" if task.channels <= 256 else "16-bit grey"
        return {"kind": task.kind, "png": f"{bits}; pixel value = class id", "classes": list(task.classes)}
    if task.kind == "binary":
        return {
            "kind": task.kind,
            "png": "8-bit grey; probability = value / 255",
            "scale": 1 / 255,
            "offset": 0.0,
        }
    if task.unit == "m":
        text = "16-bit grey, millimetres; metres = value / 1000, at most 65.535"
        return {"kind": task.kind, "png": text, "unit": "m", "scale": 0.001, "offset": 0.0}
    if task.kind == "scalar":
        return {"kind": task.kind, "png": _NUMBERS}
    return {
        "kind": task.kind,
        "png": "8-bit RGB; component = value / 127.5 - 1",
        "scale": 1 / 127.5,
        "offset": -1.0,
    }


def encode_map(task: Task, map: Tensor) -> tuple[bytes, dict]:
    """A decoded map ([H, W], or [3, H, W] for vectors) as PNG, and how to read this one.

    The second part is {"offset": ..., "scale": ...} for scalars and empty for all others, whose files are
    all read alike (`describe_format`).
    """
    value = map.detach().cpu().numpy()
    if task.kind == "classes":
        if task.channels > 256:
            return _png(Image.fromarray(value.astype(np.uint16))), {}
        return _png(_with_palette(value.astype(np.uint8), task)), {}
    if task.kind == "binary":
        return _png(Image.fromarray(_rounded(value * 255.0, 255).astype(np.uint8))), {}
    if task.unit == "m":
        return _png(Image.fromarray(_rounded(value * 1000.0, 65535).astype(np.uint16))), {}
    if task.kind == "scalar":
        return encode_scalar(value)
    rgb_HW3 = np.moveaxis(_rounded((value + 1.0) * 127.5, 255).astype(np.uint8), 0, -1)
    return _png(Image.fromarray(np.ascontiguousarray(rgb_HW3))), {}


def encode_scalar(value_HW: np.ndarray) -> tuple[bytes, dict]:
    """Numbers as 16-bit grey PNG, and the {"offset": ..., "scale": ...} that reads them; both are in the PNG
    too."""
    low, high = float(value_HW.min()), float(value_HW.max())
    scale = (high - low) / 65535 or 1.0
    stored = _rounded((value_HW.astype(np.float64) - low) / scale, 65535).astype(np.uint16)
    reading = {"offset": low, "scale": scale}
    return _png(Image.fromarray(stored), reading), reading


def uncertainty_picture(value_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], dark (certain) to glowing; white is the 99th percentile of this map."""
    return apply_scale(EMBER, value_HW / max(float(np.percentile(value_HW, 99)), 1e-12))


def describe_uncertainty(task: Task) -> dict:
    """How to read the files of this task's uncertainty, for maps.json."""
    meaning = {
        "unit_vector": "angular spread of the draws in degrees",
        "scalar": "variance of the draws in the value's unit squared",
    }
    return {"means": meaning.get(task.kind, "entropy of the averaged probabilities in nats"), "png": _NUMBERS}


def encode_npy(map: Tensor) -> bytes:
    """float16 .npy."""
    stream = io.BytesIO()
    np.save(stream, map.detach().cpu().numpy().astype(np.float16), allow_pickle=False)
    return stream.getvalue()


def encode_picture(rgb: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG: a sixth larger than it could be, for two thirds of the time."""
    return _png(Image.fromarray(np.ascontiguousarray(rgb)), level=1)


def _with_palette(ids_HW: np.ndarray, task: Task) -> Image.Image:
    height, width = ids_HW.shape
    image = Image.frombytes("P", (width, height), ids_HW.tobytes())
    image.putpalette(task.picture(np.arange(task.channels)[None])[0].tobytes())
    return image


def _rounded(value: np.ndarray, top: int) -> np.ndarray:
    return np.rint(np.clip(value, 0, top))


def _png(image: Image.Image, reading: dict | None = None, level: int = 4) -> bytes:
    stream, info = io.BytesIO(), PngInfo()
    if reading:
        info.add_text("dmtl", json.dumps(reading))
    image.save(stream, "PNG", compress_level=level, pnginfo=info)
    return stream.getvalue()
