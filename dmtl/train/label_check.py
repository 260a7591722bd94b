"""Check labels before the first step, as a quick version of `dmtl data check`.

Files are only listed. At most `LOOKED_AT` labels of each task are read, evenly spread over the split. Reading
stops earlier if every class was seen, except for tasks with two classes. If all pixels read so far of a task
are ignored, or those of a binary task are all negative or ignored, reading continues until one is not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dmtl.data import Cached, DiskCached, LabelledImages, LabelMatrix, Resized
from dmtl.data.labels.occurrence import Occurrence, is_unscaled
from dmtl.data.sources import Joined
from dmtl.errors import ConfigError, DataError
from dmtl.text import plural, shortened

LOOKED_AT = 64  # number of labels read per task
LEAVE_OUT = "the task out (data.tasks, or `drop` of a source)"
SHOWN = 3  # number of file names in a message


def refuse_unlabelled(train: LabelledImages, labels: LabelMatrix) -> None:
    """Check that every task has a visible training label.

    Raises:
        ConfigError: a task has none; the message names these tasks.
    """
    bare = [task for task in labels.tasks if not labels.column(task).any()]
    if not bare:
        return
    exist = train.available()
    hidden = [task for task in bare if exist.column(task).any()]
    reasons = [f"data.labels hides all labels of {task}" for task in hidden]
    reasons += misplaced(train, bare)
    rest = [task for task in labels.tasks if task not in bare]
    without = f"leave it out (data.tasks = {rest})" if rest else "choose other data"
    raise ConfigError(
        f"no training image of {train.name} has a visible label of {', '.join(bare)}"
        f"{''.join(f'; {reason}' for reason in reasons)}. Add labels, or {without}"
    )


def misplaced(data: LabelledImages, tasks: Iterable[str]) -> list[str]:
    """Return a sentence for each task whose folder is missing or has files that are not a label of any
    image."""
    lines = []
    for task in tasks:
        lines += data.missing(task)
        if names := data.unread(task):
            are = "is" if len(names) == 1 else "are"
            lines.append(
                f"{plural(len(names), 'file')} in {task}/ {are} not read: {shortened(names, SHOWN)} "
                "(a label has the name of its image and ends in .png, .tif, .tiff or .npy)"
            )
    return lines


def label_notes(
    train: LabelledImages, val: LabelledImages, labels: LabelMatrix, *, skip_corrupt: bool = False
) -> list[str]:
    """Return what a user should know about the labels before training on them.

    Args:
        train: the training images.
        val: the validation images.
        labels: which labels training may use.
        skip_corrupt: skip samples that cannot be read.

    Raises:
        ConfigError: every pixel of all visible labels of a task is ignored; or a binary task has ignored
            pixels, but no positive one.
        DataError: a label or its image cannot be read.
    """
    train, val, scored = _as_stored(train), _as_stored(val), val.available()
    notes = [
        f"no validation image has a label of {task}, so it is not scored"
        for task in train.tasks
        if not scored.column(task).any()
    ]
    if isinstance(train, Joined) and isinstance(val, Joined):
        tables = labels.of_sources(train.sources)
        for mine, other in zip(train.parts, val.parts, strict=True):
            if _is_rendered(mine.dataset):
                continue
            try:
                found = _notes(mine, other, tables[mine.name].subset(tasks=list(mine.tasks)), skip_corrupt)
            except ConfigError as error:
                raise ConfigError(f"{mine.name}: {error}") from None
            notes += [f"{mine.name}: {note}" for note in found]
    elif not _is_rendered(train):
        notes += _notes(train, val, labels, skip_corrupt)
    return [f"warning: {note}" for note in notes]


def _notes(train: LabelledImages, val: LabelledImages, labels: LabelMatrix, skip_corrupt: bool) -> list[str]:
    """Return the notes on one data set."""
    notes = misplaced(train, train.tasks)
    if twice := _in_both(train, val):
        shown = shortened(twice, SHOWN)
        notes.append(
            f"{len(twice)} of {plural(len(val), 'validation image')} are also training images: {shown}"
        )
    for name, found in _look(train, labels, skip_corrupt).items():
        total = int(labels.column(name).sum())
        if found.labels and not found.useful:
            remedy = (
                "Map stored values to classes with `values:` in dataset.yaml"
                if train.tasks[name].label_names
                else "Correct the files"
            )
            raise ConfigError(
                f"every pixel of the {found.labels} visible labels of {name} is ignored. {remedy}, or leave "
                + LEAVE_OUT
            )
        if found.is_misread:
            raise ConfigError(f"{name}: {found.fault()}, or leave {LEAVE_OUT}")
        if not found.labels:
            continue
        looked = "" if found.labels == total else f" ({found.labels} of {total}; `dmtl data check` reads all)"
        texts = [fault] if (fault := found.fault()) else found.notes()
        notes += [f"{name}: {text}{looked}" for text in texts]
    return notes


def _is_rendered(data: LabelledImages) -> bool:
    """Return whether labels are rendered, so that they need no check."""
    return getattr(data, "to_order", False)


def _look(train: LabelledImages, labels: LabelMatrix, skip_corrupt: bool) -> dict[str, Occurrence]:
    """Read some of the visible labels, as the module describes, and count what occurs in them."""
    found = {task: Occurrence(train.tasks[task]) for task in labels.tasks}
    definitions = {task: train.definition(task) for task in labels.tasks}

    def is_open(task: str) -> bool:
        occurrence = found[task]
        if not occurrence.useful or occurrence.is_misread:
            return True
        # With two classes, read all of them: each label matters, not only whether both classes occur.
        more = bool(occurrence.absent) or len(occurrence.task.label_names) == 2
        return more and occurrence.labels < LOOKED_AT

    rows = np.flatnonzero(labels.matrix.any(1))
    stride = max(1, len(rows) // LOOKED_AT)
    for row in np.concatenate([rows[start::stride] for start in range(stride)]).tolist():
        wanted = [task for task in labels.tasks_of(labels.ids[row]) if is_open(task)]
        if wanted:
            try:
                sample = train.read(row, wanted)
            except DataError:
                if skip_corrupt:
                    continue  # the loader will count and log the sample
                raise
            for task, label in sample.labels.items():
                stored = train.stored(row, task) if "scale" in definitions[task] else None
                unscaled = stored is not None and is_unscaled(stored, definitions[task])
                found[task].add(label, train.label_file(row, task), unscaled=unscaled)
        elif not any(map(is_open, found)):
            break
    return found


def _in_both(train: LabelledImages, val: LabelledImages) -> list[str]:
    """Return the ids of validation images that are also training images, judged by their files."""
    place = {id: index for index, id in enumerate(train.ids)}
    shared = [(id, place[id], index) for index, id in enumerate(val.ids) if id in place]
    files = ((id, train.image_file(here), val.image_file(there)) for id, here, there in shared)
    return [id for id, mine, other in files if mine is not None and mine == other]


def _as_stored(data: LabelledImages) -> LabelledImages:
    """Return the data set below the wrappers, so that this check does not fill their caches."""
    while isinstance(data, (Cached, DiskCached, Resized)):
        data = data.dataset
    return data
