"""Names of a data set's files, which must stay inside its folder, and the text of its lists."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from dmtl.errors import DataError


def inner_path(name: str, where: str) -> str:
    """`name` if it is a relative path that stays in its folder; `where` begins the message when it is not."""
    path = PurePosixPath(name)
    unsafe = (
        not name
        or name != name.strip()
        or "\\" in name
        or any(ord(c) < 32 for c in name)
        or re.match(r"[A-Za-z]:", name)
        or path.is_absolute()
        or str(path) != name
        or ".." in path.parts
        or len(name.encode(errors="replace")) > 240
    )
    if unsafe or name == ".":
        raise DataError(f"{where}: {name[:80]!r}, expected a relative path without '..' inside the data set")
    return name


def plain_name(name: object, where: str) -> str:
    """`name` if it can be one folder or file name; `where` begins the message when it cannot."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise DataError(f"{where}: {str(name)[:80]!r}, expected letters, digits, '_', '-' and '.'")
    return name


def read_text(path: str | os.PathLike, what: str) -> str:
    """The UTF-8 text of a file; DataError when it is missing or holds something else."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}), expected {what}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}), expected {what}") from error
