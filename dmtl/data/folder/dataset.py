"""The folder format: `images/`, one folder of label maps per task, `splits/` and `dataset.yaml`.

    ROOT/dataset.yaml          name, tasks and other keys (below)
    ROOT/splits/train.txt      one id per line; an id may name a subfolder (`city/0001`)
    ROOT/images/ID.jpg         or .jpeg, .png, .webp, .bmp, .tif, .tiff, .ppm, .pgm, .heic, .avif, ...
    ROOT/<task>/ID.png         or .tif, .tiff, .npy; if it is missing, the image has no label of this task

    tasks:
      semseg: {kind: classes, classes: [sky, road, car]}     # uint8 class ids, 255 = ignore
      sal:    {kind: binary}                                 # uint8 0 / 1, 255 = ignore
      normals: {kind: unit_vector}                           # RGB, n = 2 x / 255 - 1; or .npy float [H, W, 3]
      depth:  {kind: scalar, scale: 0.001}                   # 16-bit PNG, 0 = unknown; or .npy [H, W]

Tasks may have any names; if `dmtl.tasks` does not know the name, the task gets the default loss of its
kind. Further keys (`ignore`, `weight`, ...) are passed to `dmtl.tasks.make_task`. Four keys say how files of
any type are read; a key that does not apply to the kind is an error (docs/data.md has the details):

    scale: 0.001       numbers: value of one step of a stored whole number; stored floats are not scaled
    unknown: -1        numbers: the stored value that means unknown; default: 0 in PNG, none in .npy.
                       Non-finite values are always unknown, and so is 0 in a distance or its inverse
    values: {0: 0, 255: 1}                     classes, binary: stored value -> id, name or "ignore"
    colors: {road: [128, 64, 128], ignore: "#000000"}      classes, binary: RGB of each class

Images and labels are turned by their orientation tags, because labels are drawn on images as viewers show
them (`dmtl.data.images`). A TIFF of unsigned whole numbers of up to 16 bits holds codes, as a PNG does; any
other TIFF holds numbers, as a .npy does. A PNG of numbers that `dmtl predict` wrote is read by the scale in
the file. Other keys:

    labels: labels.csv                                  # hides the labels that the table does not show
    evaluation: {frame: [512, 512], max_dist: 0.0075}   # the published protocol (`LabelledImages`)
    boundaries: contours            # ROOT/contours/ID.png, 0 and 1: true boundaries for the boundary
        benchmark # of the first task that is thin (edge, or binary with `thin: true`)
    description: any text

No file outside ROOT is read, not even through a link; ROOT itself may be a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from dmtl.data.base import unknown_name
from dmtl.data.folder.described import Described
from dmtl.data.folder.description import read_description
from dmtl.data.folder.paths import (
    find_files,
    foreign_files,
    inner_path,
    inside,
    missing_folder,
    nfc,
    read_ids,
)
from dmtl.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.shards.dataset import shards_root
from dmtl.errors import DataError


class Folder(Described):
    """One split of a data set in the folder format.

    Args:
        root: the folder.
        split: name of the split, such as "train".
        tasks: names of the tasks to use; None: all of `dataset.yaml`.
        ids: use only these images of the split; None: all.

    Raises:
        DataError: the folder violates the format, or has no such split, task or id; the message names the
            file.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        tasks: Iterable[str] | None = None,
        ids: Iterable[str] | None = None,
    ):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"{root}: no such folder, expected a data set with images/, splits/ and dataset.yaml"
            )
        listed = read_split(self.root, split)
        description = read_description(self.root)
        wanted = listed if ids is None else [nfc(id) for id in ids]
        super().__init__(description, self.root / "dataset.yaml", split, tasks, wanted)
        if unlisted := set(self.ids) - set(listed):
            raise DataError(f"{self.root / 'splits' / split}.txt: id {min(unlisted)!r} is missing")
        self._images = self._find("images", IMAGE_SUFFIXES)
        missing = [i for i in self.ids if i not in self._images]
        if missing:
            raise DataError(
                f"{self.root / 'splits' / split}.txt: {len(missing)} of {len(self.ids)} ids have no image, "
                f"the first is {missing[0]!r}, expected images/{missing[0]}.jpg or "
                f"one of {', '.join(IMAGE_SUFFIXES[1:])}"
            )
        self._files = {t: self._find(t, LABEL_SUFFIXES) for t in self.tasks}
        self._boundary_folder: str | None = description.get("boundaries")
        self._boundaries = (
            {} if self._boundary_folder is None else self._find_boundaries(self._boundary_folder)
        )
        if self._boundaries:
            self.use_boundaries()
        table = description.get("labels")
        where = f"{self.root / 'dataset.yaml'}: labels"
        self._table = None if table is None else self._read_table(self._inside(inner_path(table, where)))

    def available(self) -> LabelMatrix:
        """Return which labels exist and are not hidden by the table that `dataset.yaml` names."""
        return self._available

    def image_file(self, index: int) -> Path:
        return self._inside("images", self._images[self.ids[index]])

    def label_file(self, index: int, task: str) -> Path | None:
        name = self._files[task].get(self.ids[index])
        return None if name is None else self._inside(task, name)

    def unread(self, task: str) -> list[str]:
        """Return the files in the folder of a task that belong to no image, of this or another split."""
        listed = {id for path in (self.root / "splits").glob("*.txt") for id in read_ids(path)}
        pictures = {id for id, _ in foreign_files(self._inside("images"), (), set())}
        return [name for _, name in foreign_files(self._inside(task), LABEL_SUFFIXES, listed | pictures)]

    def missing(self, task: str) -> list[str]:
        wrong = missing_folder(self.root, task, [*self.options, self._boundary_folder or ""])
        return [] if wrong is None else [f"{self.root / task}: {wrong}"]

    def boundary_file(self, index: int) -> Path | None:
        if not self._boundaries:
            return None
        assert self._boundary_folder is not None
        return self._inside(self._boundary_folder, self._boundaries[self.ids[index]])

    def image_name(self, index: int) -> str:
        return f"images/{self._images[self.ids[index]]}"

    def identity(self, task: str | None = None) -> list:
        """Add the path of the folder, and size and time of change of every file, to notice edited files."""
        folder, files = ("images", self._images) if task is None else (task, self._files[task])
        stamps = [_stamp(self.root / folder / files[id]) if id in files else None for id in self.ids]
        return [*super().identity(task), str(self.root.resolve()), self._reads.get(task or "", {}), stamps]

    @cached_property
    def _available(self) -> LabelMatrix:
        exists = np.array([[i in self._files[t] for t in self.tasks] for i in self.ids], bool)
        on_disk = LabelMatrix(self.ids, list(self.tasks), exists.reshape(len(self.ids), len(self.tasks)))
        return on_disk if self._table is None else on_disk.intersect(self._table)

    def _read_table(self, path: Path) -> LabelMatrix | None:
        """Return the rows of the label table for this split; None if it has no image of the split."""
        table = LabelMatrix.read_csv(path)
        if not set(table.ids) & set(self.ids):
            return None
        table = table.subset(self.ids, list(self.tasks))
        for task in self.tasks:
            claimed = [i for i, on in zip(self.ids, table.column(task)) if on and i not in self._files[task]]
            if claimed:
                raise DataError(
                    f"{path}: lists {len(claimed)} labels of {task} that do not exist, the first is "
                    f"{claimed[0]!r}, expected {task}/{claimed[0]}.png or "
                    f"one of {', '.join(LABEL_SUFFIXES[1:])}"
                )
        return table

    def _inside(self, *parts: str) -> Path:
        return inside(self.root, self.root.joinpath(*parts))

    def _find(self, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
        return find_files(self._inside(folder), suffixes, self.ids)

    def _find_boundaries(self, folder: str) -> dict[str, str]:
        """Return the boundary file of each id; {} if there is none at all.

        Raises:
            DataError: only some ids have a file: one score must not mix two kinds of ground truth.
        """
        found = self._find(folder, (".png",))
        missing = [id for id in self.ids if id not in found]
        if found and missing:
            raise DataError(
                f"{self.root / folder}: {len(missing)} of the {len(self.ids)} images of "
                f"{self.split} have no boundaries, the first is {missing[0]!r}, expected all or none"
            )
        return found


def read_split(root: Path, split: str) -> list[str]:
    """Return the ids of `splits/<split>.txt` in order; raise DataError if there is no such split."""
    known = sorted(p.stem for p in (root / "splits").glob("*.txt"))
    if not known and (shards := sorted(p.name for p in root.glob("*.tar"))):
        named = root / (shards_root(shards) if all(p[:-4].isdecimal() for p in shards) else shards[0])
        raise DataError(f"{root}: a folder of shards, expected the shards themselves, such as '{named}'")
    if not known:
        raise DataError(
            f"{root / 'splits'}: no list of ids; create splits/train.txt and splits/val.txt, one id per line"
        )
    if split not in known:
        raise DataError(f"{root / 'splits'}: {unknown_name('split', split, known)}")
    return read_ids(inside(root, root / "splits" / f"{split}.txt"))


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # reading the file will report it
        return []
    return [status.st_size, status.st_mtime_ns]
