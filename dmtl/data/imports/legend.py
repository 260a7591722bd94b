"""Labels by name, and the class ids that they get."""

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
"""The label of pixels that mean nothing."""


@dataclass(frozen=True)
class Choice:
    """Which labels become classes, as a person asked for.

    classes     only these, in this order; None: all labels
    background  class of the pixels that no shape covers; None: they mean nothing
    ignore      labels whose pixels mean nothing
    known       classes that the target has already
    """

    classes: Sequence[str] | None = None
    background: str | None = None
    ignore: Sequence[str] = ()
    known: Sequence[str] | None = None


@dataclass(frozen=True)
class Legend:
    """The class ids of a task. `ids` has every label: its id, `IGNORE`, or None if it is left out; `rest` is
    the id of pixels that no shape covers."""

    ids: Mapping[str, int | None]
    rest: int = IGNORE


def class_task(
    source: Path, name: str, listed: Sequence[str], used: Counter[str], choice: Choice
) -> tuple[Task, Legend, list[str]]:
    """Give the labels of a task their class ids.

    Args:
        listed: the labels as the format lists them; empty if it does not, and then they are sorted.
        used: how often each label occurs.

    Returns:
        The task, its legend, and sentences about what is left out.

    Raises:
        ConfigError: the choice names a label that does not exist.
        DataError: the labels do not suit the target, or are too few or too many.
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
    """Return a note about labels that differ in case alone, which somebody may have typed."""
    forms: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        forms.setdefault(label.casefold(), []).append(label)
    alike = [label for found in forms.values() if len(found) > 1 for label in found]
    return [f"labels that differ in case alone are different: {', '.join(alike)}"] if alike else []


def _check_choice(labels: Sequence[str], choice: Choice, *, closed: bool) -> None:
    """Check the labels that are named; `closed`: only `labels` can occur."""
    for name in choice.ignore:
        if name not in labels:
            raise ConfigError(f"--ignore: no label is called {name!r}{did_you_mean(name, labels)}")
        if name in (choice.classes or ()):
            raise ConfigError(f"--ignore: {name!r} is one of --classes, too")
    for name in choice.classes or ():
        if closed and name not in labels and name != choice.background:
            raise ConfigError(f"--classes: no label is called {name!r}{did_you_mean(name, labels)}")


def _classes(labels: Sequence[str], choice: Choice) -> list[str]:
    """Return the classes in their order: those asked for, those of the target, or all labels."""
    if choice.classes is not None:
        classes = list(choice.classes)
    elif choice.known is not None:
        classes = list(choice.known)
    else:
        classes = [label for label in labels if label not in choice.ignore]
    missing = choice.background is not None and choice.background not in classes
    return [choice.background, *classes] if missing else classes  # type: ignore[list-item]
