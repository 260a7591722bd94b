"""Count what occurs in labels: whether they are useful for training, and which classes are absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dmtl.data.shards.member import AnyFile
from dmtl.tasks import Task

SHOWN = 5  # names in a message


@dataclass
class Occurrence:
    """Counts over the labels of one task.

    Attributes:
        task: the task.
        labels: number of labels examined.
        useful: number of labels with a known pixel.
        ignored: number of labels with a pixel of the value `ignore`.
        doubtful: number of labels of a two-class task that hold only one class and `ignore`.
        unscaled: number of labels stored as floats although the task has a `scale`.
        classes: class ids that occur.
        example: file of the first label with a pixel of the value `ignore`; "" if it is not known.
    """

    task: Task
    labels: int = 0
    useful: int = 0
    ignored: int = 0
    doubtful: int = 0
    unscaled: int = 0
    classes: set[int] = field(default_factory=set)
    example: str = ""

    def add(self, label_KHW: Tensor, file: AnyFile | None = None, *, unscaled: bool = False) -> None:
        """Count one more label, that of `file`."""
        self.labels += 1
        self.unscaled += unscaled
        names = self.task.label_names
        if not names:
            self.useful += bool(self.task.valid(label_KHW).any())
            return
        found = set(np.flatnonzero(np.bincount(label_KHW.numpy().ravel())).tolist())
        here = {id for id in found if id < len(names) and id != self.task.ignore}
        self.useful += bool(here)
        if self.task.ignore in found:
            self.ignored += 1
            self.example = self.example or str(file or "")
        self.doubtful += len(names) == 2 and len(here) == 1 and self.task.ignore in found
        self.classes |= here

    def merge(self, other: Occurrence) -> None:
        """Add what `other` counted."""
        self.labels += other.labels
        self.useful += other.useful
        self.ignored += other.ignored
        self.doubtful += other.doubtful
        self.unscaled += other.unscaled
        self.classes |= other.classes
        self.example = self.example or other.example

    @property
    def absent(self) -> list[int]:
        """Return the ids of the classes that do not occur."""
        return [id for id in range(len(self.task.label_names)) if id not in self.classes]

    @property
    def is_empty(self) -> bool:
        """Return whether no pixel is known or, for a binary task, none is positive."""
        required = self.task.required_label
        return not self.useful or (required is not None and required not in self.classes)

    @property
    def is_misread(self) -> bool:
        """Return whether ignored pixels occur, but never the class without which labels are useless."""
        required = self.task.required_label
        return bool(self.ignored) and required is not None and required not in self.classes

    def fault(self) -> str | None:
        """Return why these labels are useless for training; None if they are useful."""
        if not self.labels:
            return "no readable label at all, expected at least one"
        if not self.useful:
            return f"every pixel of its {self.labels} labels is ignored"
        names = self.task.label_names
        if not names or len(self.classes) > 1 or self.task.required_label in self.classes:
            return None
        (only,) = self.classes
        if len(names) > 2:
            text = f"only class {self._named([only])} occurs in its {self.labels} labels"
        else:
            text = f"class {self._named([1 - only])} occurs in none of its {self.labels} labels"
        if not self.ignored:
            return text
        example = f" (as in {self.example})" if self.example else ""
        return f"{text}, while {self.task.ignore:g} (ignored) does{example}: {self._remedy()}"

    def notes(self) -> list[str]:
        """Return sentences about possible mistakes in labels that are useful for training."""
        found = []
        if absent := self.absent:
            word, occur = ("classes", "occur") if len(absent) > 1 else ("class", "occurs")
            found.append(f"{word} {self._named(absent)} {occur} in none of its {self.labels} labels")
        elif 2 * self.doubtful > self.labels:  # a few such labels are normal
            found.append(
                f"{self.doubtful} of its {self.labels} labels hold only one class and {self.task.ignore:g} "
                f"(ignored): {self._remedy()}"
            )
        if self.unscaled:
            found.append(
                f"{self.unscaled} of its {self.labels} labels are files of floats, which are read without "
                "`scale`: it only applies to whole numbers"
            )
        return found

    def _remedy(self) -> str:
        """Return what to write in dataset.yaml if the value of `ignore` was meant to be a class."""
        ids = sorted(self.classes)
        other = next((id for id in ids if id), 0) if len(ids) > 1 else int(ids == [0])
        value, name = f"{self.task.ignore:g}", self.task.label_names[other]
        entries = ", ".join([*(f"{id}: {id}" for id in ids), f"{value}: {other}"])
        return f"if {value} means {name!r}, write `values: {{{entries}}}` in dataset.yaml"

    def _named(self, ids: Sequence[int]) -> str:
        named = ", ".join(f"{id} ({self.task.label_names[id]})" for id in ids[:SHOWN])
        return named + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def is_unscaled(stored: np.ndarray, definition: Mapping[str, Any]) -> bool:
    """Return whether a file holds floats although its task has a `scale`, which then does not apply.

    `definition` is that of the task (`LabelledImages.definition`).
    """
    return "scale" in definition and stored.dtype.kind == "f"
