"""Write files atomically: a reader never sees a partial file."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LONGEST_NAME = 255  # limit in bytes on nearly all file systems


def write_atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Call `write` with the name of a temporary file in the folder of `path`, then rename that file to
    `path`.

    If `write` or the rename fails, an existing file stays unchanged and no temporary file is left.

    Raises:
        OSError: the file cannot be written (full disk, read-only folder); the message names `path`.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(**temporary_name(path))
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def temporary_name(path: Path) -> dict[str, Any]:
    """Return the arguments of `tempfile.mkstemp` for a file that will become `path`.

    It is hidden, next to `path`, with its suffix and as much of its name as fits.
    """
    room = max(0, _LONGEST_NAME - 10 - 2 * len(os.fsencode(path.suffix)))
    stem = os.fsencode(path.stem)[:room].decode(errors="ignore")
    return {"dir": path.parent, "prefix": f".{stem}{path.suffix}.", "suffix": path.suffix}


def is_temporary(name: str) -> bool:
    """Return whether this is the name of a temporary file of `write_atomically`; a killed process leaves
    one."""
    suffix = re.escape(Path(name).suffix)
    return re.fullmatch(rf"\..+{suffix}\.[a-z0-9_]{{8}}{suffix}", name) is not None


def original_stem(name: str) -> str:
    """Return the stem of the file that would have become of the temporary file `name`."""
    suffix = Path(name).suffix
    return name[1 : -len(f"{suffix}.12345678{suffix}")]


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically. File names in it that are not valid text (surrogates) keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON that strict parsers accept: NaN and infinity, which JSON lacks (RFC 8259), become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(path: str | os.PathLike, value: object, indent: int = 2) -> None:
    """Write `json_text` atomically."""
    write_text(path, json_text(value, indent) + "\n")


def float_from_json(value: Any) -> float:
    """Convert a number that `json_text` wrote back to float: null becomes NaN."""
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
