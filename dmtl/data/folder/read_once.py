"""Files that are met several times, opened and decoded once: by a check, which wants their values before and
after decoding, their sizes and their digests.

A function that reads files opens them with `open_file`, and is `remembered` if it decodes them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from dmtl.data.folder.manifest import digest_of

R = TypeVar("R")
MAX_KEPT = 256 << 20
"""Bytes of a file that is kept. Larger ones are opened each time, and nothing is said of their bytes."""


class _Kept:
    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.values: dict[tuple, Any] = {}
        self.digests: dict[str, tuple[int, str]] = {}


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def read_once() -> Iterator[dict[str, tuple[int, str]]]:
    """Until its end, in this thread, files are opened once, and what was made of them is given again to who
    asks again: nobody may write to it. Yields path -> (bytes, SHA-256) of those opened so far."""
    kept = _Kept()
    before = _kept.set(kept)
    try:
        yield kept.digests
    finally:
        _kept.reset(before)


class BoundedFile(io.BufferedReader):
    """Never asks for more than the file has: a chunk may claim gigabytes, which would be allocated."""

    def __init__(self, raw: io.RawIOBase | io.BytesIO):
        super().__init__(raw)
        self.length = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.length - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_file(path: str | os.PathLike) -> BoundedFile:
    """A file for reading. OSError where it cannot be opened or, within `read_once`, be read."""
    kept, name = _kept.get(), os.fspath(path)
    if kept is None:
        return BoundedFile(io.FileIO(name))
    if name not in kept.contents:
        file = BoundedFile(io.FileIO(name))
        if file.length > MAX_KEPT:
            return file
        with file:
            kept.contents[name] = file.read()
        kept.digests[name] = digest_of(kept.contents[name])
    return BoundedFile(io.BytesIO(kept.contents[name]))


def remembered(read: Callable[..., R]) -> Callable[..., R]:
    """`read(path, ...)`, which within `read_once` is called once for the same arguments."""

    @wraps(read)
    def recall(path: str | os.PathLike, **options: Any) -> R:
        kept = _kept.get()
        if kept is None:
            return read(path, **options)
        key = (read, os.fspath(path), *sorted(options.items()))
        if key not in kept.values:
            kept.values[key] = read(path, **options)
        return kept.values[key]

    return recall
