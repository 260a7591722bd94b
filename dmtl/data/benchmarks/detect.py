"""Find the reader of a distributed benchmark, by name or by the content of a folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path

from dmtl.data.base import unknown_name
from dmtl.data.benchmarks.base import Distribution
from dmtl.errors import DataError
from dmtl.text import shortened

FORMATS: dict[str, tuple[str, str]] = {
    "pascal-context": ("pascal_context", "PascalContext"),
    "nyud-13": ("nyud", "Nyud13"),
    "nyud-40": ("nyud", "Nyud40"),
    "cityscapes-7": ("cityscapes", "Cityscapes7"),
    "cityscapes-19": ("cityscapes", "Cityscapes19"),
    "cityscapes-raw": ("cityscapes", "CityscapesRaw"),
}
"""Name of a format -> (module of this package, class); the module is imported on demand."""


def distribution(format: str) -> type[Distribution]:
    """Return the reader class of a format.

    Raises:
        DataError: an unknown format; the message suggests the nearest name.
    """
    if format not in FORMATS:
        raise DataError(f"open_distribution: {unknown_name('format', format, FORMATS)}")
    module, name = FORMATS[format]
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def recognised(root: str | os.PathLike) -> list[str]:
    """Return every format that the folder looks like, judged by the names in it."""
    return [name for name in FORMATS if distribution(name).recognises(Path(root))]


def detect(root: str | os.PathLike) -> str | None:
    """Return the one format that the folder looks like, or None.

    Raises DataError if it looks like several, such as a folder with labels of 7 and of 19 classes.
    """
    found = recognised(root)
    if len(found) > 1:
        raise DataError(f"{root}: holds {' and '.join(found)}, pass one of them as format")
    return found[0] if found else None


def open_distribution(
    root: str | os.PathLike, split: str, tasks: Iterable[str] | None = None, format: str | None = None
) -> Distribution:
    """Open one split of the benchmark in `root`.

    Args:
        root: folder of the benchmark, as its authors distribute it.
        split: name of the split in the benchmark: "train" or "val" (Cityscapes' release also has "test").
        tasks: names of the tasks to use; None: all tasks of the benchmark.
        format: one of `FORMATS`; None: what `detect` finds.

    Raises:
        DataError: an unknown format or split, or a missing or wrong file; the message names the file, or the
            known formats and what the folder holds.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder, expected one of {', '.join(FORMATS)}")
    format = detect(root) if format is None else format
    if format is None:
        raise DataError(f"{root}: {holds(root)}, expected one of {', '.join(FORMATS)} as distributed")
    return distribution(format)(root, split, tasks)


def holds(root: str | os.PathLike) -> str:
    """Describe the content of a folder briefly, for messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(os.fspath(root)))
    return f"holds {shortened(names)}" if names else "is empty"
