"""Read benchmarks that are distributed as one .npy file per image and label, in the layout of MTAN.

    ROOT/{train,val}/image/ROW.npy      floats from 0 to 1, [H, W, 3]
    ROOT/{train,val}/<label>/ROW.npy    class ids [H, W] with -1 = unknown; numbers [H, W] or [H, W, 1] with
                                        0 = unknown; vectors [H, W, 3] with zeros = unknown

ROW counts from 0 in each split and is the row of the published tables of labels. The distributions do not
document dtypes, so any real one is accepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from dmtl.data.benchmarks.base import Distribution, unit_image, unlike
from dmtl.data.folder.paths import inside
from dmtl.data.images import read_npy
from dmtl.errors import DataError


class Arrays(Distribution):
    """Base class of these readers. Ids include the split ("train/0"), so they differ between splits."""

    folders: ClassVar[dict[str, str]] = {}
    """Task -> folder of its labels."""

    def __init__(self, root: str | os.PathLike, split: str, tasks: Iterable[str] | None = None):
        super().__init__(root, split, tasks)
        for task in self.tasks:
            folder = self.folder(task)
            rows = _rows(folder)
            if odd := set(rows) ^ set(range(len(self))):
                raise DataError(
                    f"{folder}: {len(rows)} labels, expected one for each of the {len(self)} images; "
                    f"the first file that is missing or has no image is {min(odd)}.npy"
                )

    def folder(self, task: str) -> Path:
        """Return the folder of a task's labels."""
        return self.root / self.split / self.folders[task]

    def image(self, index: int) -> Tensor:
        path = inside(self.root, self.root / self.split / "image" / f"{index}.npy")
        return unit_image(read_npy(path), path)

    def stored(self, index: int, task: str) -> np.ndarray:
        path = inside(self.root, self.folder(task) / f"{index}.npy")
        return self.decode(read_npy(path), task, path)

    def decode(self, array: np.ndarray, task: str, path: Path) -> np.ndarray:
        """Convert a label's array to the form stored in the folder format."""
        made = self.tasks[task]
        if made.label_names:
            return class_ids(array, made.channels, path)
        return vectors(array, path) if made.unit_length else numbers(array, path)

    def _ids(self, split: str) -> list[str]:
        folder = self.root / split / "image"
        rows = _rows(folder)
        if not rows or rows != list(range(len(rows))):
            gap = next((n for n, row in enumerate(rows) if n != row), 0)
            raise DataError(
                f"{folder}: no {gap}.npy among {len(rows)} files, expected 0.npy, 1.npy, ... without a gap"
            )
        return [f"{split}/{row}" for row in rows]


def class_ids(array: np.ndarray, count: int, path: Path, hint: str = "") -> np.ndarray:
    """Convert class ids 0 .. count-1, and -1 for unknown, to uint8 [H, W] with 255 for unknown.

    Raises:
        DataError: another shape, dtype or value; `hint` is appended to the message about values.
    """
    array = _one_per_pixel(array, path)
    known = (array >= 0) & (array < count) & (array == np.floor(array))  # False for NaN
    wrong = ~known & (array != -1)
    if wrong.any():
        raise DataError(
            f"{path}: value {array[wrong][0]:g} in {int(wrong.sum())} pixels, expected class ids 0 to "
            f"{count - 1}, or -1 for unknown{hint}"
        )
    ids = np.full(array.shape, 255, np.uint8)
    ids[known] = array[known].astype(np.uint8)
    return ids


def numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert positive numbers, and 0 for unknown, to float32 [H, W] with NaN for unknown.

    Raises:
        DataError: another shape or dtype, or a negative or non-finite value.
    """
    array = _one_per_pixel(array, path)
    with np.errstate(over="ignore"):
        value = array.astype(np.float32)
    wrong = ~np.isfinite(value) | (value < 0)
    if wrong.any():
        raise DataError(
            f"{path}: value {array[wrong][0]:g} in {int(wrong.sum())} pixels, "
            "expected positive numbers, or 0 for unknown"
        )
    return np.where(value > 0, value, np.float32("nan"))


def vectors(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert vectors [H, W, 3] to unit vectors, float32 [H, W, 3]; zeros mean unknown and stay zeros.

    Shorter vectors, which interpolation leaves, are normalised.

    Raises:
        DataError: another shape or dtype, or a component outside [-1, 1].
    """
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "fi":
        raise unlike(array, path, "vectors [H, W, 3]")
    vector = array.astype(np.float64)
    if not (np.abs(vector) <= 1.01).all():  # False for NaN
        raise DataError(f"{path}: values outside [-1, 1], expected unit vectors, or zeros for unknown")
    length = np.sqrt((vector * vector).sum(2, keepdims=True))
    return (vector / np.where(length > 0, length, 1)).astype(np.float32)


def _one_per_pixel(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise unlike(array, path, "one number per pixel")
    return array


def _rows(folder: Path) -> list[int]:
    """Return the numbers of the .npy files in a folder, sorted."""
    try:
        stems = [name[:-4] for name in os.listdir(folder) if name.endswith(".npy") and name[0] != "."]
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror}), expected a folder of .npy files"
        ) from error
    for stem in stems:
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", stem):
            raise DataError(f"{folder / stem}.npy: not a number, expected files named 0.npy, 1.npy, ...")
    return sorted(map(int, stems))
