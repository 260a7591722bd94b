"""Read and write `manifest.jsonl`: size and SHA-256 of all files of a data set, one line per sample.

    {"id": "city/0001", "split": "train", "files": {"images/city/0001.png": [81234, "9f86d0..."], ...}}

A line is appended after all files of its sample were written, so an interrupted conversion knows where to
resume. The manifest is also the only way to find a damaged JPEG that decodes without an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dmtl.data.folder.paths import inner_path, inside
from dmtl.errors import DataError

NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """The files of one sample: path below the data set -> (size in bytes, SHA-256 in hexadecimal)."""

    id: str
    split: str
    files: dict[str, tuple[int, str]]

    def line(self) -> str:
        """Return the entry as a line of JSON, without a line break; equal entries give equal lines."""
        files = {path: list(self.files[path]) for path in sorted(self.files)}
        return json.dumps({"id": self.id, "split": self.split, "files": files}, separators=(",", ":"))

    def complete(self, root: Path) -> bool:
        """Return whether all files exist with the sizes of the entry."""
        return all(size_of(root, path) == size for path, (size, _) in self.files.items())


def size_of(root: Path, path: str) -> int | None:
    """Return the size of a file of the data set in bytes, or None if it is missing.

    Raises:
        DataError: the file is a link out of the data set.
    """
    try:
        return os.stat(inside(root, root / path)).st_size
    except OSError:
        return None


def digest_of(content: bytes) -> tuple[int, str]:
    """Return (size in bytes, SHA-256 in hexadecimal) of a file's content, as in an `Entry`."""
    return len(content), hashlib.sha256(content).hexdigest()


def read_manifest(root: Path) -> list[Entry]:
    """Return the entries of `root/manifest.jsonl`; [] if the file is missing.

    A last line without a line break, which an interrupted writer leaves, is ignored.

    Raises:
        DataError: the file cannot be read, or another line is not an entry; the message names it.
    """
    path = inside(root, root / NAME)
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), expected a manifest") from error
    return [_entry(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]


def _entry(line: bytes, where: str) -> Entry:
    try:
        found = json.loads(line)
        id, split, files = found["id"], found["split"], found["files"]
        if not (
            isinstance(id, str) and isinstance(split, str) and isinstance(files, dict) and len(found) == 3
        ):
            raise TypeError
        for size, digest in files.values():
            if type(size) is not int or size < 0 or re.fullmatch("[0-9a-f]{64}", digest) is None:
                raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(
            f'{where}: {line[:60]!r}, expected {{"id": ..., "split": ..., "files": '
            "{path: [bytes, SHA-256]}}"
        ) from None
    inner_path(id, where)
    return Entry(
        id, split, {inner_path(path, where): (size, digest) for path, (size, digest) in files.items()}
    )
