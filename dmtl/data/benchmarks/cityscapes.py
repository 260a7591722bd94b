"""Cityscapes as it is distributed: arrays with 7 or 19 classes (MTAN), and the release of its authors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np

from dmtl.data.benchmarks.arrays import Arrays, class_ids
from dmtl.data.benchmarks.base import Distribution, unlike
from dmtl.data.folder.paths import inner_path, inside
from dmtl.data.images import read_label_image
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError
from dmtl.tasks import Task, make_task

# (label id in the released files, name). The position in this table is the class id, called "trainId" by
# Cordts et al.: The Cityscapes dataset for semantic urban scene understanding, CVPR 2016.
LABELS_19 = (
    (7, "road"), (8, "sidewalk"), (11, "building"), (12, "wall"), (13, "fence"), (17, "pole"),
    (19, "traffic light"), (20, "traffic sign"), (21, "vegetation"), (22, "terrain"), (23, "sky"),
    (24, "person"), (25, "rider"), (26, "car"), (27, "truck"), (28, "bus"), (31, "train"),
    (32, "motorcycle"), (33, "bicycle"),
)  # fmt: skip
CLASSES_19 = tuple(name for _, name in LABELS_19)


class CityscapesArrays(Arrays):
    """Base class of the array distributions: ROOT/{train,val}/{image,<labels>,depth}/ROW.npy.

    They have 2,975 training and 500 validation images of 128x256 pixels or, in another release, 256x512.
    Predictions are scored at that size. `dmtl.data.benchmarks.arrays` describes the files.

    Class ids are in the folders label_7 and label_19, or in `label`, which may hold either. A folder with
    only `label` is read as 7 classes; an id above 6 is then an error. Depth is inverse distance, 0 to 0.4922,
    with 0 for unknown; it is very likely the 16-bit disparity divided by 65535.
    """

    classes: ClassVar[int | tuple[str, ...]]

    def folder(self, task: str) -> Path:
        if task == "depth":
            return self.root / self.split / "depth"
        own = self.root / self.split / f"label_{self.format.rpartition('-')[2]}"
        return own if own.is_dir() else own.with_name("label")

    def make_tasks(self) -> dict[str, Task]:
        return {"semseg": make_task("semseg", classes=self.classes), "depth": _depth()}


class Cityscapes7(CityscapesArrays):
    """Cityscapes with 7 classes, whose names were not published, and inverse depth."""

    format = "cityscapes-7"
    classes = 7

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return any(
            _has(root / split, "label_7")
            or (_has(root / split, "label") and not _has(root / split, "label_19"))
            for split in cls.splits
        )

    def decode(self, array: np.ndarray, task: str, path: Path) -> np.ndarray:
        if task != "semseg":
            return super().decode(array, task, path)
        return class_ids(array, 7, path, " (format cityscapes-19 reads 19 classes)")


class Cityscapes19(CityscapesArrays):
    """Cityscapes with 19 classes and inverse depth."""

    format = "cityscapes-19"
    classes = CLASSES_19

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return any(_has(root / split, "label_19") for split in cls.splits)


class CityscapesRaw(Distribution):
    """Cityscapes as its authors release it: 19 classes and disparity, at 1024x2048 pixels.

    The splits have 2,975, 500 and 1,525 images; the test split has no labels.

    ROOT/leftImg8bit/{train,val,test}/ID_leftImg8bit.png    RGB; an ID is CITY/CITY_SEQ_FRAME
    ROOT/gtFine/{train,val}/ID_gtFine_labelIds.png          uint8 0..33 or 255; 19 of them are scored
    ROOT/disparity/{train,val}/ID_disparity.png             uint16 x, pixels = (x - 1) / 256, 0 = unknown
    """

    format = "cityscapes-raw"
    splits = ("train", "val", "test")
    places: ClassVar = {"semseg": ("gtFine", "gtFine_labelIds"), "depth": ("disparity", "disparity")}

    def __init__(self, root: str | os.PathLike, split: str, tasks: Iterable[str] | None = None):
        super().__init__(root, split, tasks)
        for task in self.tasks if split != "test" else ():
            folder, ending = self.places[task]
            found = set(self._list(split, folder, ending))
            if missing := [id for id in self.ids if id not in found]:
                raise DataError(
                    f"{self.root / folder / split}: no label for {len(missing)} of {len(self)} images, "
                    f"expected {missing[0]}_{ending}.png"
                )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return (root / "leftImg8bit").is_dir()

    def make_tasks(self) -> dict[str, Task]:
        return {"semseg": make_task("semseg", classes=CLASSES_19), "depth": _depth()}

    def available(self) -> LabelMatrix:
        exists = np.full((len(self), len(self.tasks)), self.split != "test")
        return LabelMatrix(self.ids, list(self.tasks), exists)

    def image_file(self, index: int) -> Path:
        return self._file("leftImg8bit", "leftImg8bit", index)

    def stored(self, index: int, task: str) -> np.ndarray | None:
        if self.split == "test":
            return None
        path = self._file(*self.places[task], index)
        array = read_label_image(path)
        return _train_ids(array, path) if task == "semseg" else _disparity(array, path)

    def _ids(self, split: str) -> list[str]:
        ids = self._list(split, "leftImg8bit", "leftImg8bit")
        if not ids:
            raise DataError(
                f"{self.root / 'leftImg8bit' / split}: no images, expected CITY/<id>_leftImg8bit.png"
            )
        return ids

    def _file(self, folder: str, ending: str, index: int) -> Path:
        return inside(self.root, self.root / folder / self.split / f"{self.ids[index]}_{ending}.png")

    def _list(self, split: str, folder: str, ending: str) -> list[str]:
        """Return the ids of files of one kind, sorted by name; each folder is listed once."""
        top, ids = inside(self.root, self.root / folder / split), []
        for city in _names(top):
            if (top / city).is_dir():
                for name in _names(inside(self.root, top / city)):
                    if name.endswith(f"_{ending}.png"):
                        id = f"{city}/{name.removesuffix(f'_{ending}.png')}"
                        ids.append(inner_path(id, f"{top}: name of a file"))
        return ids


def _train_ids(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert label ids of the release to class ids, uint8 [H, W], with 255 for classes that are not
    scored."""
    if array.ndim != 2 or array.dtype != np.uint8 or ((array > 33) & (array < 255)).any():
        raise DataError(
            f"{path}: {array.dtype} values of shape {list(array.shape)} up to {array.max()}, "
            "expected ids of labels 0 to 33, or 255"
        )
    table = np.full(256, 255, np.uint8)
    table[[id for id, _ in LABELS_19]] = range(len(LABELS_19))
    return table[array]


def _disparity(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert 16-bit codes to disparity, float32 [H, W], in pixels of the full image, with NaN for
    unknown."""
    if array.ndim != 2 or array.dtype != np.uint16:
        raise unlike(array, path, "a 16-bit grey picture")
    return np.where(array > 0, (array.astype(np.float32) - 1) / 256, np.float32("nan"))


def _depth() -> Task:
    return make_task("depth", distance=False, inverse=True, score="abs_err")


def _has(folder: Path, labels: str) -> bool:
    """Return whether a split has arrays of these labels but no normals; NYUD-v2 would have normals."""
    names = ("image", "depth", labels)
    return all((folder / name).is_dir() for name in names) and not (folder / "normal").exists()


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}), expected a folder") from error
