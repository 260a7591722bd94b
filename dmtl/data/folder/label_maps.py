"""Label maps as files: from pixels in their natural format to the project's terms, and back.

    classes, binary   uint8 [1, H, W]     PNG, grey or palette indices (or .npy of integers)
    unit_vector       float32 [3, H, W]   RGB PNG, n = 2 x / 255 - 1, or .npy [H, W, 3]; normalised here
    scalar            float32 [1, H, W]   grey PNG (8 or 16 bit) times `scale`, 0 = unknown, or .npy [H, W]

Pixels without meaning hold the task's `ignore` value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmtl.data.images import npy_bytes, png_bytes, read_label_image, read_npy
from dmtl.errors import DataError
from dmtl.tasks import Task

READING_OPTIONS = ("scale", "unknown")  # keys of dataset.yaml that concern the files, not the task
_UNIT_LENGTH = (
    0.5,
    1.5,
)  # rounding to 8 bits cannot take a unit vector further than this: black, grey, white = unknown


def read_label(path: Path, task: Task, *, scale: float | None = None, unknown: float | None = None) -> Tensor:
    """The label map [K, H, W] at `path`.

    `scale` is the value of one step of a PNG of scalars; `unknown` marks one value of a .npy of scalars.
    Raises DataError naming the file when it is damaged or its values are not what the task allows.
    """
    stored = stored_values(path)
    numbers = path.suffix.lower() == ".npy" or stored.dtype.kind == "f"
    return decode_label(stored, task, path, numbers=numbers, scale=scale, unknown=unknown)


def stored_values(path: Path) -> np.ndarray:
    """Return what a .npy, PNG or TIFF file of a label holds."""
    return read_npy(path) if path.suffix.lower() == ".npy" else read_label_image(path)


def decode_label(
    stored: np.ndarray,
    task: Task,
    path: str | Path,
    *,
    numbers: bool,
    scale: float | None = None,
    unknown: float | None = None,
) -> Tensor:
    """The label map [K, H, W] of a file's values.

    Args:
        stored: [H, W], [H, W, 1] or, for unit vectors, [H, W, 3].
        path: what messages call it.
        numbers: whether they are the values themselves (as .npy holds them) or 8- or 16-bit codes (as PNG).
        scale, unknown: as in `read_label`.
    """
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if task.kind == "unit_vector":
        return _unit_vectors(path, stored, task, numbers)
    if stored.ndim != 2:
        raise DataError(
            f"{path}: {stored.dtype} values of shape {list(stored.shape)}, expected one value per pixel, "
            "grey or palette"
        )
    if task.kind == "scalar":
        return _scalars(path, stored, task, numbers, scale, unknown)
    return _class_ids(path, stored, task, numbers)


def stored_label(task: Task, label_KHW: Tensor) -> np.ndarray:
    """The values of a file that `read_label` gives this label for: uint8 [H, W] of ids, float32 [H, W, 3] of
    vectors (zeros where unknown), float32 [H, W] of numbers (NaN where unknown)."""
    if task.kind in ("classes", "binary"):
        return label_KHW[0].numpy()
    unknown = 0.0 if task.kind == "unit_vector" else float("nan")
    label_KHW = torch.where(task.valid(label_KHW), label_KHW, unknown)
    return (label_KHW.permute(1, 2, 0) if task.kind == "unit_vector" else label_KHW[0]).numpy()


def label_file(stored: np.ndarray) -> tuple[str, bytes]:
    """Suffix and content of the file for stored values: PNG for uint8, .npy for numbers."""
    return (".png", png_bytes(stored)) if stored.dtype == np.uint8 else (".npy", npy_bytes(stored))


def _class_ids(path: str | Path, stored: np.ndarray, task: Task, numbers: bool) -> Tensor:
    if stored.dtype.kind not in "bui" or (not numbers and stored.dtype != np.uint8):
        raise DataError(
            f"{path}: {stored.dtype} values, expected 8-bit class ids or 0 and 1 (grey or palette PNG)"
        )
    count = task.channels if task.kind == "classes" else 2
    wrong = (stored >= count) & (stored != task.ignore)
    if stored.dtype.kind == "i":
        wrong |= stored < 0
    if wrong.any():
        values = np.unique(stored[wrong])
        shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
        raise DataError(
            f"{path}: value {shown} in {int(wrong.sum())} pixels, "
            f"expected 0 to {count - 1}, or {task.ignore:g} (ignore)"
        )
    return torch.from_numpy(stored.astype(np.uint8))[None]


def _unit_vectors(path: str | Path, stored: np.ndarray, task: Task, numbers: bool) -> Tensor:
    if stored.ndim != 3 or stored.shape[2] != 3 or (numbers and stored.dtype.kind != "f"):
        raise DataError(
            f"{path}: {stored.dtype} values of shape {list(stored.shape)}, "
            "expected an RGB PNG or a .npy of floats [H, W, 3]"
        )
    vector = stored.transpose(2, 0, 1).astype(np.float32, order="C")
    if not numbers:
        vector *= 2 / 255
        vector -= 1
    length = lengths(*vector)
    known = (length > _UNIT_LENGTH[0]) & (length < _UNIT_LENGTH[1])  # False for NaN
    with np.errstate(divide="ignore", invalid="ignore"):
        vector /= length
    vector[:, ~known] = task.ignore
    return torch.from_numpy(vector)


def lengths(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Of vectors, from arrays of their components; without a warning where they are not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sqrt(x * x + y * y + z * z)


def _scalars(
    path: str | Path,
    stored: np.ndarray,
    task: Task,
    numbers: bool,
    scale: float | None,
    unknown: float | None,
) -> Tensor:
    if numbers:
        with np.errstate(over="ignore"):
            value = stored.astype(np.float32)
        known = np.isfinite(value)
        if unknown is not None:
            known &= stored != unknown
    elif scale is None:
        raise DataError(
            f"{path}: whole numbers without a unit, expected `scale:` (units per step) for task "
            f"{task.name!r} in dataset.yaml, or a .npy of floats"
        )
    else:
        value, known = stored.astype(np.float32) * np.float32(scale), stored > 0
    return torch.from_numpy(np.where(known, value, np.float32(task.ignore)))[None]
