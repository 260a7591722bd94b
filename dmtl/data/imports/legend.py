"""Assign class ids to the labels of an annotation tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmtl.errors import ConfigError, DataError, did_you_mean
from dmtl.tasks import Task, make_task
from dmtl.text import shortened

IGNORE = 255
MOST_CLASSES = 255
VOID = ""
"""The label of pixels that are ignored."""


@dataclass(frozen=True)
class Choice:
    """Which labels become classes, as the user chose.

    Attributes:
        classes: only these, in this order; None: all labels.
        background: class of the pixels that no shape covers; None: they are ignored.
        ignore: labels whose pixels are ignored.
        known: classes that the target already has; None: it has no split yet.
    """

    classes: Sequence[str] | None = None
    background: str | None = None
    ignore: Sequence[str] = ()
    known: Sequence[str] | None = None


@dataclass(frozen=True)
class Legend:
    """The class ids of a task.

    Attributes:
        ids: label -> class id, `IGNORE`, or None if the label is left out.
        rest: id of the pixels that no shape covers.
    """

    ids: Mapping[str, int | None]
    rest: int = IGNORE


def class_task(
    source: Path, name: str, listed: Sequence[str], used: Counter[str], choice: Choice
) -> tuple[Task, Legend, list[str]]:
    """Assign class ids to the labels of a task.

    Args:
        source: file or folder of the annotations, for messages.
        name: name of the task.
        listed: the labels in the order in which the format lists them; empty if it lists none: labels are
            then sorted by name.
        used: how often each label occurs.
        choice: which labels become classes.

    Returns:
        The task, its legend, and sentences about what is left out.

    Raises:
        ConfigError: the choice names a label that does not exist.
        DataError: a label is not a class of the target, or there are too few or too many classes.
    """
    labels = list(dict.fromkeys([*listed, *sorted(used)]))
    _check_choice(labels, choice, closed=bool(listed))
    classes = _classes(labels, choice)
    ids = {label: classes.index(label) if label in classes else None for label in labels}
    ids |= dict.fromkeys(choice.ignore, IGNORE)
    gone = [label for label, id in ids.items() if id is None and used[label]]
    if gone and choice.classes is None:
        raise DataError(
            f"{source}: label {gone[0]!r:.80} is not a class of {name} in the target, which has "
            f"{', '.join(classes):.300}{did_you_mean(gone[0], classes)}; import into a new folder, or choose "
            "labels with --classes and --ignore"
        )
    notes = _alike([*labels, *classes])
    if gone:
        shown = shortened(f"{label!r} ({used[label]})" for label in gone)
        notes.append(f"left out: labels that --classes does not name: {shown}")
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"{source}: {len(classes)} classes of {name}, expected at most {MOST_CLASSES} (labels are "
            "stored in 8 bits): choose some with --classes"
        )
    if len(classes) < 2:
        raise DataError(
            f"{source}: {', '.join(classes) or 'no label':.80} for {name}, expected at least two classes, "
            "one of which may be the background"
        )
    rest = IGNORE if choice.background is None else classes.index(choice.background)
    return make_task(name, kind="classes", classes=classes), Legend(ids, rest), notes


def _alike(labels: Sequence[str]) -> list[str]:
    """Return a note about labels that differ only in case, which may be typing errors; [] if there are
    none."""
    forms: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        forms.setdefault(label.casefold(), []).append(label)
    alike = [label for found in forms.values() if len(found) > 1 for label in found]
    return [f"labels that differ only in case are different classes: {', '.join(alike)}"] if alike else []


def _check_choice(labels: Sequence[str], choice: Choice, *, closed: bool) -> None:
    """Check that the labels in `choice` exist; `closed`: the format lists all `labels`."""
    for name in choice.ignore:
        if name not in labels:
            raise ConfigError(f"--ignore: no label is called {name!r}{did_you_mean(name, labels)}")
        if name in (choice.classes or ()):
            raise ConfigError(f"--ignore: {name!r} is one of --classes, too")
    for name in choice.classes or ():
        if closed and name not in labels and name != choice.background:
            raise ConfigError(f"--classes: no label is called {name!r}{did_you_mean(name, labels)}")


def _classes(labels: Sequence[str], choice: Choice) -> list[str]:
    """Return the classes in order: those chosen, or else those of the target, or else all labels."""
    if choice.classes is not None:
        classes = list(choice.classes)
    elif choice.known is not None:
        classes = list(choice.known)
    else:
        classes = [label for label in labels if label not in choice.ignore]
    missing = choice.background is not None and choice.background not in classes
    return [choice.background, *classes] if missing else classes  # type: ignore[list-item]
