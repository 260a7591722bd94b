"""Tasks define what each predicted map is. `make_task` and `task_from_spec` create one; `KNOWN` and `KINDS`
list the known names and the kinds.

A name in `KNOWN` means the published task, with its loss, metric and weight. Any other name needs a `kind`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from dmtl.errors import ConfigError, did_you_mean
from dmtl.tasks.base import Task
from dmtl.tasks.binary import Binary, Mask
from dmtl.tasks.classes import Classes
from dmtl.tasks.published import Depth, Edge, HumanParts, Normals, Sal, SemSeg
from dmtl.tasks.scalar import Scalar
from dmtl.tasks.unit_vector import UnitVector

__all__ = [
    "KINDS",
    "KNOWN",
    "Binary",
    "Classes",
    "Depth",
    "Edge",
    "HumanParts",
    "Mask",
    "Normals",
    "Sal",
    "Scalar",
    "SemSeg",
    "Task",
    "UnitVector",
    "chosen_tasks",
    "known_tasks",
    "list_tasks",
    "make_task",
    "task_from_spec",
]

KNOWN: dict[str, type[Task]] = {
    "semseg": SemSeg,
    "human_parts": HumanParts,
    "sal": Sal,
    "normals": Normals,
    "edge": Edge,
    "depth": Depth,
}
KINDS: dict[str, type[Task]] = {
    "classes": Classes,
    "binary": Mask,
    "unit_vector": UnitVector,
    "scalar": Scalar,
}


def make_task(name: str, kind: str | None = None, **options: Any) -> Task:
    """Create the task called `name`.

    Args:
        name: one of `KNOWN`, or a new name.
        kind: one of `KINDS`; needed for a new name, and must agree with a known one.
        options: fields of the task's class, such as `weight`, `ignore`, `classes`.

    Raises:
        ConfigError: the kind contradicts the name or is missing, an option is unknown, or its value cannot
            work.
    """
    task_class = find_class(name, kind)
    check_options(name, task_class, options)
    return task_class(name=name, **options)


def find_class(name: str, kind: str | None) -> type[Task]:
    """Return the class of the task called `name`; raises as `make_task`."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(
            f"task {name!r}: kind must be one of {', '.join(KINDS)}, got {kind!r:.80}{_nearest(kind, KINDS)}"
        )
    if name not in KNOWN:
        if kind is None:
            raise ConfigError(
                f"task {name!r}: kind must be given for names other than {', '.join(KNOWN)}, "
                f"got none{_nearest(name, KNOWN)}"
            )
        return KINDS[kind]
    task_class = KNOWN[name]
    if kind not in (None, task_class.kind):
        raise ConfigError(f"task {name!r}: kind must be {task_class.kind!r} for this name, got {kind!r}")
    return task_class


def check_options(
    name: str, task_class: type[Task], options: Iterable[str], also: Iterable[str] = ()
) -> None:
    """Check the names of the options of a task; those of `also` are allowed, too.

    Raises:
        ConfigError: an option is unknown; the message lists all and suggests the nearest one.
    """
    allowed = ["kind", *(f.name for f in fields(task_class) if f.name != "name"), *also]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"task {name!r}: option must be one of {', '.join(allowed)}, got {option!r:.80}"
                f"{_nearest(option, allowed)}"
            )


def list_tasks() -> list[str]:
    """Return the names of the known tasks.

    With any other name, `make_task` creates a custom task of a `kind`.
    """
    return list(KNOWN)


def task_from_spec(spec: Mapping[str, Any] | Task | str) -> Task:
    """Return the task that `spec` describes.

    Args:
        spec: the result of `Task.spec()`; an entry of `dataset.yaml` with the key "name" added; the name of a
            known task; or a task, which is returned unchanged.

    Raises:
        ConfigError: `spec` has no name, or `make_task` raises it.
    """
    if isinstance(spec, Task):
        return spec
    if isinstance(spec, str):
        return make_task(spec)
    named = isinstance(spec, Mapping) and isinstance(spec.get("name"), str)
    if not named or not all(isinstance(key, str) for key in spec):
        raise ConfigError(f"task_from_spec: spec must be a mapping with a name, got {spec!r:.80}")
    return make_task(**spec)


def known_tasks(where: object, known: Iterable[str], wanted: Iterable[str] | None) -> list[str]:
    """Return the names in `wanted` without repetition; None: all `known` ones.

    Raises:
        ConfigError: a name is unknown; the message begins with `where` and suggests the nearest name.
    """
    known = list(known)
    names = list(dict.fromkeys(known if wanted is None else wanted))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{where}: tasks must be among {', '.join(known) or '(none)'}, "
                f"got {name!r}{_nearest(name, known)}"
            )
    return names


def chosen_tasks(where: object, known: Iterable[str], wanted: Iterable[str] | None) -> list[str]:
    """Return `known_tasks`, at least one.

    Raises:
        ConfigError: a name is unknown, or `wanted` is empty.
    """
    names = known_tasks(where, known, wanted)
    if not names:
        raise ConfigError(f"{where}: tasks must name at least one of {', '.join(known)}, got none")
    return names


def _nearest(word: object, words: Iterable[str]) -> str:
    return did_you_mean(word, words, " (", ")")
