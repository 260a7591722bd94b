"""NYUD-v2 as it is distributed: 13 classes as arrays (MTAN), 40 classes as pictures (ATRC, MTI-Net)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmtl.data.benchmarks.arrays import Arrays, numbers, vectors
from dmtl.data.benchmarks.base import Distribution, unlike
from dmtl.data.folder.label_maps import read_stored
from dmtl.data.folder.paths import find_files, inside, read_ids
from dmtl.data.images import image_size
from dmtl.errors import DataError
from dmtl.metrics.morphology import outline
from dmtl.tasks import Task, make_task

# Couprie, Farabet, Najman, LeCun: Indoor semantic segmentation using depth information, ICLR 2013; in the
# order of the public mapping of the 40 classes to 13 that MTAN uses.
CLASSES_13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table",
    "television", "wall", "window",
)  # fmt: skip
# Gupta, Arbelaez, Malik: Perceptual organization and recognition of indoor scenes from RGB-D images, CVPR
# 2013.
CLASSES_40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure",
    "other furniture", "other prop",
)  # fmt: skip


class Nyud13(Arrays):
    """NYUD-v2 with 13 classes, depth in metres and normals: 795 training and 654 validation images of
    288x384.

    Predictions are scored at that size. The files, described in `dmtl.data.benchmarks.arrays`:

        ROOT/{train,val}/{image,label,depth,normal}/ROW.npy
    """

    format = "nyud-13"
    folders = {"semseg": "label", "depth": "depth", "normals": "normal"}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        names = ("image", *cls.folders.values())
        return any(all((root / split / name).is_dir() for name in names) for split in cls.splits)

    def make_tasks(self) -> dict[str, Task]:
        semseg = make_task("semseg", classes=CLASSES_13)
        return {
            "semseg": semseg,
            "depth": make_task("depth", score="abs_err"),
            "normals": make_task("normals"),
        }


class Nyud40(Distribution):
    """40 classes, depth in metres, normals, edges; 425x560, 795 and 654 images, scored in a frame of 448x576.

    ROOT/gt_sets/{train,val}.txt    one id per line
    ROOT/images/ID.png              RGB; .jpg in the older variant, NYUD_MT, whose images are 480x640
    ROOT/segmentation/ID.png        uint8 0..40, label = value - 1, 0 = unknown
    ROOT/depth/ID.npy               metres [H, W], 0 = unknown
    ROOT/normals/ID.png             RGB, n = 2 x / 255 - 1; .npy [H, W, 3] from -1 to 1 in the older variant
    ROOT/edge/ID.png                uint8 0 / 255; .npy of 0 / 1 in the older variant

    In both variants, images may have any size and labels may have either suffix.
    """

    format = "nyud-40"
    evaluation = {"frame": [448, 576], "max_dist": 0.011}
    folders = {"semseg": "segmentation", "depth": "depth", "normals": "normals", "edge": "edge"}

    def __init__(self, root: str | os.PathLike, split: str, tasks: Iterable[str] | None = None):
        super().__init__(root, split, tasks)
        self._images = self._find("images", (".png", ".jpg", ".jpeg"))
        self._files = {
            task: self._find(self.folders[task], (".npy",) if task == "depth" else (".png", ".npy"))
            for task in self.tasks
        }
        frame = self.evaluation["frame"]
        if any(side > most for side, most in zip(image_size(self.image_file(0), upright=False), frame)):
            self.evaluation = {"max_dist": self.evaluation["max_dist"]}  # 480x640: it fits no published frame

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return (root / "gt_sets").is_dir() and (root / "images").is_dir()

    def make_tasks(self) -> dict[str, Task]:
        return {
            "semseg": make_task("semseg", classes=CLASSES_40),
            "depth": make_task("depth"),
            "normals": make_task("normals"),
            "edge": make_task("edge"),
        }

    def image_file(self, index: int) -> Path:
        return inside(self.root, self.root / "images" / self._images[self.ids[index]])

    def stored(self, index: int, task: str) -> np.ndarray:
        path = inside(self.root, self.root / self.folders[task] / self._files[task][self.ids[index]])
        array = read_stored(path).values
        if task == "semseg":
            return _shifted(array, path)
        if task == "edge":
            return _zero_or_one(array, path)
        if task == "depth":
            return numbers(array, path)
        if path.suffix == ".npy":
            return vectors(array, path)
        if array.shape[2:] != (3,):
            raise unlike(array, path, "an RGB picture")
        return array

    def boundaries(self, index: int) -> Tensor | None:
        """Return the outlines that the boundary benchmark scores, bool [H, W]; None without the task edge.

        As in published results, they are seg2bmap's outlines of the edge label, whose lines count as areas.
        The metric thins them.
        """
        return torch.from_numpy(outline(self.stored(index, "edge"))) if "edge" in self.tasks else None

    def _ids(self, split: str) -> list[str]:
        return read_ids(inside(self.root, self.root / "gt_sets" / f"{split}.txt"))

    def _find(self, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
        found = find_files(inside(self.root, self.root / folder), suffixes, self.ids)
        if missing := [id for id in self.ids if id not in found]:
            raise DataError(
                f"{self.root / folder}: no file for {len(missing)} of {len(self.ids)} ids of {self.split}, "
                f"expected {missing[0]}{' or '.join(suffixes)}"
            )
        return found


def _shifted(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert stored classes 1 .. 40, and 0 for unknown, to ids 0 .. 39 and 255, uint8 [H, W]."""
    count = len(CLASSES_40)
    _whole(array, path)
    if array.min() < 0 or array.max() > count:
        raise DataError(
            f"{path}: values {array.min():g} to {array.max():g}, expected classes 1 to {count}, "
            "or 0 for unknown"
        )
    ids = array.astype(np.uint8)
    return np.where(ids == 0, np.uint8(255), ids - np.uint8(1))


def _zero_or_one(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert values 0 and 1, or 0 and 255, to 0 and 1, uint8 [H, W]."""
    _whole(array, path)
    top = 255 if array.max() == 255 else 1
    if not ((array == 0) | (array == top)).all():
        raise DataError(f"{path}: values {array.min():g} to {array.max():g}, expected 0 and 255, or 0 and 1")
    return (array != 0).astype(np.uint8)


def _whole(array: np.ndarray, path: Path) -> None:
    if array.ndim != 2 or not (array == np.floor(array)).all():  # False for NaN
        raise unlike(array, path, "a whole number per pixel")
