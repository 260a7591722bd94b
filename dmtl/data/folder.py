"""Labelled images in a folder: `images/`, one folder of label maps per task, `splits/` and `dataset.yaml`.

    ROOT/dataset.yaml          name, tasks (below), and `labels: labels.csv` when some labels must stay hidden
    ROOT/splits/train.txt      one id per line; an id may name a subfolder (`city/0001`)
    ROOT/images/ID.jpg         or .jpeg, .png
    ROOT/<task>/ID.png         or .npy; a missing file means: this image has no label of this task

    tasks:
      semseg: {kind: classes, classes: [sky, road, car]}     # uint8 class ids, 255 = ignore
      sal:    {kind: binary}                                 # uint8 0 / 1, 255 = ignore
      normals: {kind: unit_vector}                           # RGB, n = 2 x / 255 - 1; or .npy float [H, W, 3]
      depth:  {kind: scalar, scale: 0.001}                   # 16-bit PNG, 0 = unknown; or .npy [H, W]

Any name may stand under `tasks`; a name that `dmtl.tasks` does not know gets the default loss of its
kind. Further keys (`ignore`, `weight`, ...) go to `dmtl.tasks.make_task`. `unknown: -1` marks one value
of a .npy scalar as unknown; non-finite values always are, and so is 0 where the task is a distance.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample, unknown_name
from dmtl.data.image_io import read_image
from dmtl.data.label_maps import READING_OPTIONS, read_label
from dmtl.data.partial_labels import LabelMatrix
from dmtl.data.paths import find_files, inner_path, plain_name, read_ids, read_text
from dmtl.errors import DataError, DmtlError
from dmtl.tasks import Task, make_task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png", ".npy")


class Folder(LabelledImages):
    """The images of one split of a folder, with all tasks of `dataset.yaml` or those in `tasks`."""

    def __init__(self, root: str | os.PathLike, split: str, tasks: Iterable[str] | None = None):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"{root}: no such folder, expected a data set with images/, splits/ and dataset.yaml"
            )
        description = read_description(self.root)
        chosen = list(description["tasks"]) if tasks is None else list(tasks)
        for task in chosen:
            if task not in description["tasks"]:
                raise DataError(
                    f"{self.root / 'dataset.yaml'}: {unknown_name('task', task, description['tasks'])}"
                )
        self._options = {t: description["tasks"][t] for t in description["tasks"] if t in chosen}
        made = {t: _make_task(t, options, self.root / "dataset.yaml") for t, options in self._options.items()}
        super().__init__(description["name"], split, made, read_split(self.root, split))

        self._images = find_files(self.root / "images", IMAGE_SUFFIXES, self.ids)
        missing = [i for i in self.ids if i not in self._images]
        if missing:
            raise DataError(
                f"{self.root / 'splits' / split}.txt: {len(missing)} of {len(self.ids)} ids have no image, "
                f"the first is {missing[0]!r}, expected images/{missing[0]}.jpg, .jpeg or .png"
            )
        self._files = {t: find_files(self.root / t, LABEL_SUFFIXES, self.ids) for t in self.tasks}
        table = description.get("labels")
        self._table = None if table is None else self._read_table(self.root / inner_path(table, "labels"))

    def available(self) -> LabelMatrix:
        """Labels whose file exists and which the table of `dataset.yaml`, if there is one, does not hide."""
        return self._available

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        id = self.ids[index]
        visible = self._visible[id]
        sample = Sample(id, read_image(self.root / "images" / self._images[id]))
        for task in self.wanted(tasks):
            if task in visible:
                sample.labels[task] = self._read_label(task, id, sample.size)
        return sample

    def identity(self, task: str | None = None) -> list:
        """With the place of the folder, and size and time of every file: an edited one is another."""
        folder, files = ("images", self._images) if task is None else (task, self._files[task])
        stamps = [_stamp(self.root / folder / files[id]) if id in files else None for id in self.ids]
        reading = {k: v for k, v in self._options.get(task, {}).items() if k in READING_OPTIONS}
        return [*super().identity(task), str(self.root.resolve()), reading, stamps]

    @cached_property
    def _available(self) -> LabelMatrix:
        exists = np.array([[i in self._files[t] for t in self.tasks] for i in self.ids], bool)
        on_disk = LabelMatrix(self.ids, list(self.tasks), exists.reshape(len(self.ids), len(self.tasks)))
        return on_disk if self._table is None else on_disk.intersect(self._table)

    @cached_property
    def _visible(self) -> dict[str, set[str]]:
        return {i: set(self._available.tasks_of(i)) for i in self.ids}

    def _read_table(self, path: Path) -> LabelMatrix | None:
        """The label table for this split; None where it speaks of none of the split's images."""
        table = LabelMatrix.read_csv(path)
        if not set(table.ids) & set(self.ids):
            return None
        table = table.subset(self.ids, list(self.tasks))
        for task in self.tasks:
            claimed = [i for i, on in zip(self.ids, table.column(task)) if on and i not in self._files[task]]
            if claimed:
                raise DataError(
                    f"{path}: promises {len(claimed)} labels of {task} that do not exist, the first is "
                    f"{claimed[0]!r}, expected {task}/{claimed[0]}.png or .npy"
                )
        return table

    def _read_label(self, task: str, id: str, image_size: tuple[int, int]) -> Tensor:
        path = self.root / task / self._files[task][id]
        label = read_label(
            path, self.tasks[task], **{k: v for k, v in self._options[task].items() if k in READING_OPTIONS}
        )
        if label.shape[-2:] != image_size:
            raise DataError(
                f"{path}: label of {label.shape[-1]}x{label.shape[-2]} pixels, "
                f"expected {image_size[1]}x{image_size[0]} as images/{self._images[id]}"
            )
        return label


def read_description(root: Path) -> dict:
    """`dataset.yaml`, checked: {"name": str, "tasks": {name: options}, "labels": str (only where given)}."""
    path = root / "dataset.yaml"
    try:
        content = yaml.safe_load(read_text(path, "a description of the data set"))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{path}: not readable YAML ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict) or not content["tasks"]:
        raise DataError(f"{path}: no tasks, expected `tasks:` with one entry per task, each with its `kind`")
    for key in content:
        if key not in ("name", "tasks", "labels", "description"):
            raise DataError(f"{path}: {unknown_name('key', key, ('name', 'tasks', 'labels', 'description'))}")
    for task, options in content["tasks"].items():
        plain_name(task, f"{path}: name of a task")
        if task in ("images", "splits"):
            raise DataError(
                f"{path}: a task cannot be called {task!r}, expected another name (that folder is taken)"
            )
        if not isinstance(options, dict) or any(not isinstance(key, str) for key in options):
            raise DataError(
                f"{path}: task {task!r} is {options!r:.80}, expected a mapping such as {{kind: binary}}"
            )
    if not isinstance(content.get("labels", ""), str):
        raise DataError(f"{path}: labels is {content['labels']!r:.80}, expected the name of a CSV file")
    return {**content, "name": str(content.get("name", root.resolve().name))}


def read_split(root: Path, split: str) -> list[str]:
    """The ids of `splits/<split>.txt`, in its order."""
    known = sorted(p.stem for p in (root / "splits").glob("*.txt"))
    if split not in known:
        raise DataError(f"{root / 'splits'}: {unknown_name('split', split, known)}")
    return read_ids(root / "splits" / f"{split}.txt")


def _make_task(name: str, options: dict, path: Path) -> Task:
    for key in READING_OPTIONS:
        value = options.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"{path}: task {name!r}: {key} is {value!r:.80}, expected a number")
    if options.get("scale", 1) <= 0:
        raise DataError(f"{path}: task {name!r}: scale is {options['scale']}, expected a positive number")
    try:
        task = make_task(name, **{key: value for key, value in options.items() if key not in READING_OPTIONS})
    except (DmtlError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if task.kind in ("classes", "binary") and (
        task.ignore not in range(256) or task.kind == "binary" and task.ignore < 2
    ):
        raise DataError(
            f"{path}: task {name!r}: ignore is {task.ignore:g}, expected a pixel value up to 255 "
            "that is no label, because these labels are stored in 8 bits"
        )
    if task.kind == "classes" and task.channels > 255:
        raise DataError(
            f"{path}: task {name!r}: {task.channels} classes, expected at most 255 (8-bit labels)"
        )
    return task


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # whoever reads the file says so
        return []
    return [status.st_size, status.st_mtime_ns]
