"""A benchmark as its authors distribute it: `dmtl data convert` reads it once to write our folder format.

A subclass says where files are and what they mean. Every label first takes the form stored in the folder
format, so a converted data set reads the same values bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.folder.label_maps import decode_label
from dmtl.data.images import read_image
from dmtl.errors import DataError
from dmtl.tasks import Task


class Distribution(LabelledImages):
    """One split of a benchmark in the folder `root`, with all its tasks or those in `tasks`.

    A subclass defines `format`, `splits`, `recognises`, `make_tasks`, `_ids` and `stored`. It also defines
    `image_file`, or `image` if images are not in image files. It overrides `boundaries` if the boundary
    benchmark scores other pixels than those of the edge label.

    Raises:
        DataError: the folder or a file is missing or wrong; the message names it.
    """

    format: ClassVar[str]
    """Its name on the command line, such as "pascal-context"."""
    splits: ClassVar[tuple[str, ...]] = ("train", "val")

    def __init__(self, root: str | os.PathLike, split: str, tasks: Iterable[str] | None = None):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder, expected the {self.format} data set")
        if split not in self.splits:
            raise DataError(f"{root}: split must be one of {', '.join(self.splits)}, got {split!r}")
        super().__init__(self.format, split, self.make_tasks(), self._ids(split))
        if tasks is not None:
            self.tasks = {name: self.tasks[name] for name in self.wanted(tasks)}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the folder looks like this distribution, judged by the names in it."""
        raise NotImplementedError(f"{cls.__name__}.recognises")

    def make_tasks(self) -> dict[str, Task]:
        """Return the tasks of the benchmark by name, in the order of its papers."""
        raise NotImplementedError(f"{type(self).__name__}.make_tasks")

    def _ids(self, split: str) -> list[str]:
        """Return the ids of a split in order; each is a relative path, as the folder format allows."""
        raise NotImplementedError(f"{type(self).__name__}._ids")

    def image(self, index: int) -> Tensor:
        """Read the image as RGB, uint8 [3, H, W]."""
        path = self.image_file(index)
        if path is None:
            raise NotImplementedError(f"{type(self).__name__}.image")
        # published labels match the pixels as stored (no EXIF rotation)
        return read_image(path, upright=False)

    def stored(self, index: int, task: str) -> np.ndarray | None:
        """Return a label in the form that the folder format stores.

        Returns:
            uint8 [H, W] (class ids), uint8 [H, W, 3] (coded vectors), float32 [H, W] (numbers) or float32
            [H, W, 3] (vectors); None if the image has no label of the task.
        """
        raise NotImplementedError(f"{type(self).__name__}.stored")

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        sample = Sample(self.ids[index], self.image(index))
        for name in self.wanted(tasks):
            stored = self.stored(index, name)
            if stored is not None:
                sample.labels[name] = self.decoded(index, name, stored, sample.size)
        return sample

    def decoded(self, index: int, task: str, stored: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Decode stored values to a label [K, H, W] for an image of `size` = (height, width).

        Raises:
            DataError: the values are not those of the task, or the label has another size than the image.
        """
        where = f"{self.root}: {task} of {self.ids[index]}"
        label = decode_label(stored, self.tasks[task], where, numbers=stored.dtype.kind == "f")
        if label.shape[-2:] != size:
            raise DataError(
                f"{where}: {label.shape[-1]}x{label.shape[-2]} pixels, expected {size[1]}x{size[0]} "
                "like its image"
            )
        return label

    def identity(self, task: str | None = None) -> list:
        return [*super().identity(task), str(self.root.resolve())]


def unlike(array: np.ndarray, path: Path, expected: str) -> DataError:
    """Return the error for a file whose array has another dtype or shape than `expected`."""
    return DataError(f"{path}: {array.dtype} values of shape {list(array.shape)}, expected {expected}")


def unit_image(stored_HW3: np.ndarray, path: Path) -> Tensor:
    """Convert an image [H, W, 3] of floats in [0, 1], or uint8, to uint8 [3, H, W].

    Floats are multiplied by 255 and rounded, so multiples of 1/255 are converted exactly.

    Raises:
        DataError: another shape or dtype, or a float outside [0, 1].
    """
    if stored_HW3.ndim != 3 or stored_HW3.shape[2] != 3 or stored_HW3.dtype.kind not in "fu":
        raise unlike(stored_HW3, path, "an image [H, W, 3]")
    if stored_HW3.dtype != np.uint8:
        if not np.isfinite(stored_HW3).all() or stored_HW3.min() < 0 or stored_HW3.max() > 1:
            raise DataError(f"{path}: values outside [0, 1], expected an image of floats from 0 to 1")
        stored_HW3 = np.rint(stored_HW3 * 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(stored_HW3.transpose(2, 0, 1)))
