"""Define what an import format is: a function that reads annotations, and the options that it uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dmtl.data.base import LabelledImages
from dmtl.data.imports.dataset import Annotated, Entry, check_entries
from dmtl.data.imports.legend import Choice, Legend, class_task
from dmtl.tasks import Task
from dmtl.text import plural


@dataclass(frozen=True)
class Options:
    """What annotation files do not say. `dmtl data import --help` explains each option."""

    images: str | None = None
    masks: str | None = None
    task: str = "semseg"
    classes: tuple[str, ...] | None = None
    background: str = "background"
    ignore: tuple[str, ...] = ()
    empty: bool = False
    map: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a reader needs besides the source and the options.

    Attributes:
        known: task -> its classes, for tasks that the target already has.
        may_lack: number of images that may be missing.
        scratch: a folder for temporary files.
    """

    known: Mapping[str, Sequence[str]]
    may_lack: int
    scratch: Path


@dataclass(frozen=True)
class Found:
    """What a reader found.

    Attributes:
        splits: data sets by split; the only key is "" for a format without splits.
        notes: sentences for the user about what was left out and what has no label.
    """

    splits: dict[str, LabelledImages]
    notes: list[str]


class Reader(Protocol):
    """A function that reads all annotations of a source; labels are drawn later, when samples are read."""

    def __call__(self, source: Path, options: Options, context: Context) -> Found: ...


@dataclass(frozen=True)
class Format:
    """A reader, and the names of the `Options` that it uses; setting any other option is an error."""

    read: Reader
    follows: frozenset[str]


def annotated(
    source: Path,
    options: Options,
    context: Context,
    entries: Sequence[Entry],
    listed: Mapping[str, Sequence[str]],
    notes: Sequence[str] = (),
    *,
    complete: bool = False,
) -> Found:
    """Return entries as data sets, one for each split.

    Args:
        source: file or folder of the annotations, for messages.
        options: the user's choice of classes, background and so on.
        context: what the target already has, and how many images may be missing.
        entries: the annotated images.
        listed: task -> its labels in the order in which the format lists them; empty if it lists none.
        notes: sentences about what the reader left out; they come first in the result's notes.
        complete: the labels are maps of values: every pixel has one, so there is no background class.
    """
    check_entries(source, entries, context.may_lack)
    tasks: dict[str, Task] = {}
    legends: dict[str, Legend] = {}
    notes = list(notes)
    for task, labels in listed.items():
        shown = [entry.labels[task] for entry in entries if task in entry.labels]
        choice = Choice(
            options.classes,
            None if complete else options.background or None,
            options.ignore,
            context.known.get(task),
        )
        used = Counter(label for each in shown for label in each.labels())
        tasks[task], legends[task], left_out = class_task(source, task, labels, used, choice)
        notes += left_out
        if count := len(entries) - len(shown):
            notes.append(f"{plural(count, 'image')} without annotation: no label of {task}")
    by_split: dict[str, list[Entry]] = {}
    for entry in entries:
        by_split.setdefault(entry.split, []).append(entry)
    splits: dict[str, LabelledImages] = {
        split: Annotated(source.name, split, tasks, found, legends) for split, found in by_split.items()
    }
    return Found(splits, notes)
