"""The base class of all data sets: a list of images, each with the label maps of some of the tasks.

Shape letters: B batch, K label channels of a task (1, or 3 for unit vectors), H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError, nearest

if TYPE_CHECKING:
    from dmtl.data.shards.member import Member
    from dmtl.tasks import Task


@dataclass
class Sample:
    """One image with the labels that are known and visible.

    Attributes:
        id: name of the image, unique in its split.
        image: uint8 [3, H, W], RGB; float32 once normalised.
        labels: task name -> [K, H, W]; uint8 for classes and binary, float32 for unit vectors and scalars. A
            task without a label is simply not in the dictionary.
        valid_size: (h, w) of the part that is not padding; None when nothing was padded.
        valid_at: (top, left) of that part.
    """

    id: str
    image: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)
    valid_size: tuple[int, int] | None = None
    valid_at: tuple[int, int] = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of the image."""
        return self.image.shape[-2], self.image.shape[-1]


class LabelledImages:
    """A map-style data set: `ids` and `tasks` are known as soon as it is opened, `read` reads the pixels.

    A subclass calls `super().__init__(...)` and defines `read`. It overrides `available` if some labels do
    not exist. Instances must be picklable, because loader workers get a copy.
    """

    name: str
    split: str
    tasks: dict[str, Task]
    ids: list[str]
    evaluation: dict[str, Any] = {}
    """Settings of the published metrics, if the data set defines them. "frame" is the size [H, W] to which
    images are padded before scoring. "max_dist" is the tolerance of the boundary benchmark as a fraction of
    the image's diagonal."""
    sources: dict[str, float] = {}
    """If several data sets were joined (`dmtl.data.sources`): name of a source -> how often a training epoch
    draws each of its images. The id of an image is then "NAME/ID"."""

    def __init__(self, name: str, split: str, tasks: dict[str, Task], ids: list[str]):
        self.name, self.split, self.tasks, self.ids = name, split, tasks, ids
        self.boundary_task = next((name for name, task in tasks.items() if task.thin), None)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.split!r}, {len(self)} images, {list(self.tasks)})"

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        """Read the image at `index` with the labels of `tasks` (None: all) that exist.

        Labels of other tasks are not read at all.

        Raises:
            DataError: a file is damaged; names it.
        """
        raise NotImplementedError

    def available(self) -> LabelMatrix:
        """Return which labels exist, for all `ids` and `tasks`."""
        return LabelMatrix.full(self.ids, list(self.tasks))

    def image_file(self, index: int) -> Path | Member | None:
        """Return the file of an image, if a copy of the data set can use it unchanged.

        None if it has no file, or if `read` changes its pixels.
        """
        return None

    def label_file(self, index: int, task: str) -> Path | Member | None:
        """Return the file of a label, even if it is hidden; None if the image has no such label or file."""
        return None

    def shard_numbers(self) -> np.ndarray | None:
        """Return the shard of each image, int [N], -1 for images in no shard.

        `Loader` then draws images of a few shards together. None: images can be read equally fast in any
        order.
        """
        return None

    def stored(self, index: int, task: str) -> np.ndarray | None:
        """Return the values in a label's file as they are stored, before `read` decodes them.

        None if it has no label or no file.
        """
        return None

    def boundaries(self, index: int) -> Tensor | None:
        """Return the true boundaries of `boundary_task` for the boundary benchmark, bool [H, W].

        None: the data set does not store them separately; the boundaries are where the task's label is 1.
        """
        return None

    def identity(self, task: str | None = None) -> list:
        """Return plain values on which the images (`task` None) or the labels of `task` depend.

        `DiskCached` keeps data of different identities apart. A subclass adds whatever else decides its
        pixels, such as a folder, a seed or a size.
        """
        spec = None if task is None else {k: v for k, v in self.tasks[task].spec().items() if k != "weight"}
        return [type(self).__name__, self.name, self.split, self.ids, spec]

    def definition(self, task: str) -> dict[str, Any]:
        """Return what the labels of a task mean, in plain values; a run resumes only if they are unchanged.

        A subclass adds how it reads the labels.
        """
        return self.tasks[task].spec()

    def unread(self, task: str) -> list[str]:
        """Return the files among the labels of a task that are not the label of any image."""
        return []

    def missing(self, task: str) -> list[str]:
        """Return a sentence for each folder of labels of a task that does not exist."""
        return []

    def wanted(self, tasks: Iterable[str] | None) -> list[str]:
        """Return `tasks` as a list, or the names of all tasks for None; raise DataError for unknown names."""
        tasks = list(self.tasks if tasks is None else tasks)
        for task in tasks:
            if task not in self.tasks:
                raise DataError(f"{self.name}: {unknown_name('task', task, self.tasks)}")
        return tasks


def source_of(id: str) -> str:
    """Return the name of the source in an image's id, for data sets with several sources."""
    return id.partition("/")[0]


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the message "unknown task 'semsge', did you mean 'semseg'? available: ..."."""
    known = [str(k) for k in known]
    near = nearest(name, known)
    hint = f", did you mean {near!r}?" if near else ";"
    return f"unknown {what} {name!r:.80}{hint} available: {', '.join(known) or 'none'}"
