"""Base class of folders and shards: images and label maps in files, described by a `dataset.yaml`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample, unknown_name
from dmtl.data.folder.description import read_task
from dmtl.data.folder.label_maps import read_label, read_stored
from dmtl.data.images import image_size, read_image, read_label_image, turned_hint
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError

if TYPE_CHECKING:
    from dmtl.data.shards.member import Member


class Described(LabelledImages):
    """The images of one split, with all tasks of a description or those in `tasks`.

    A subclass finds the files: it defines `image_file`, `label_file`, `boundary_file`, `image_name` and
    `available`, and calls `use_boundaries` if there are files of boundaries.
    """

    def __init__(
        self,
        description: dict[str, Any],
        where: Path,
        split: str,
        tasks: Iterable[str] | None,
        ids: Sequence[str],
    ):
        self.options, self._where = description["tasks"], where
        chosen = list(self.options if tasks is None else tasks)
        for task in chosen:
            if task not in self.options:
                raise DataError(f"{where}: {unknown_name('task', task, self.options)}")
        made = {t: read_task(t, options, where) for t, options in self.options.items() if t in chosen}
        self._reads = {t: reading for t, (_, reading) in made.items()}
        super().__init__(description["name"], split, {t: task for t, (task, _) in made.items()}, list(ids))
        self.evaluation = description.get("evaluation", {})

    def use_boundaries(self) -> None:
        """Make the first thin task of the description the one that the boundaries belong to, used or not."""
        every = (read_task(t, options, self._where)[0] for t, options in self.options.items())
        self.boundary_task = next((task.name for task in every if task.thin), None)

    def image_file(self, index: int) -> Path | Member:
        raise NotImplementedError

    def label_file(self, index: int, task: str) -> Path | Member | None:
        raise NotImplementedError

    def boundary_file(self, index: int) -> Path | Member | None:
        """Return the file of the boundaries for the boundary benchmark; None if there is none."""
        raise NotImplementedError

    def image_name(self, index: int) -> str:
        """Return the name of the image's file in the data set, for messages."""
        raise NotImplementedError

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        sample = Sample(self.ids[index], read_image(self.image_file(index)))
        row = self._visible[index]
        for task in self.wanted(tasks):
            if row[self._column[task]]:
                sample.labels[task] = self._read_label(task, index, sample.size)
        return sample

    def stored(self, index: int, task: str) -> np.ndarray | None:
        path = self.label_file(index, task)
        return None if path is None else read_stored(path).values

    def definition(self, task: str) -> dict[str, Any]:
        return {**super().definition(task), **self._reads[task]}

    def boundaries(self, index: int) -> Tensor | None:
        path = self.boundary_file(index)
        if path is None:
            return None
        found, size = read_label_image(path), image_size(self.image_file(index))
        if found.shape != size:
            raise DataError(
                f"{path}: pixels of shape {list(found.shape)}, expected {list(size)} like "
                f"{self.image_name(index)}{self._turned(index, found.shape, size)}"
            )
        if found.max() > 1:
            raise DataError(f"{path}: value {found.max()}, expected 0 and 1 (a boundary)")
        return torch.from_numpy(found > 0)

    def available(self) -> LabelMatrix:
        raise NotImplementedError

    @cached_property
    def _visible(self) -> np.ndarray:
        return self.available().matrix

    @cached_property
    def _column(self) -> dict[str, int]:
        return {task: column for column, task in enumerate(self.tasks)}

    def _read_label(self, task: str, index: int, size: tuple[int, int]) -> Tensor:
        path = self.label_file(index, task)
        assert path is not None  # only existing labels are read
        label = read_label(path, self.tasks[task], **self._reads[task])
        if label.shape[-2:] != size:
            raise DataError(
                f"{path}: label of {label.shape[-1]}x{label.shape[-2]} pixels, expected {size[1]}x{size[0]} "
                f"like {self.image_name(index)}{self._turned(index, label.shape[-2:], size)}"
            )
        return label

    def _turned(self, index: int, found: tuple[int, ...], size: tuple[int, int]) -> str:
        hint = turned_hint(self.image_file(index), found, size)
        return hint and f" as it is shown: {hint}"
