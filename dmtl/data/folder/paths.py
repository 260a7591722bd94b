"""Check that the names of a data set's files stay inside its folder; read its lists of ids; find files."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from dmtl.errors import DataError, did_you_mean


def inner_path(name: str, where: str) -> str:
    """Return `name` if it is a relative path that stays inside its folder.

    Raises:
        DataError: it is not; the message begins with `where`.
    """
    path = PurePosixPath(name)
    unsafe = (
        not name
        or name != name.strip()
        or "\\" in name
        or not name.isprintable()
        or re.match(r"[A-Za-z]:", name)
        or path.is_absolute()
        or str(path) != name
        or ".." in path.parts
        or len(name.encode(errors="replace")) > 240
    )
    if unsafe or name == ".":
        raise DataError(
            f"{where}: {name[:80]!r}, expected a relative path inside the data set: printable, without '..', "
            "without spaces at its ends, and of at most 240 bytes"
        )
    return name


def plain_name(name: object, where: str) -> str:
    """Return `name` if it can be the name of one folder or file.

    Raises:
        DataError: it cannot; the message begins with `where`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise DataError(f"{where}: {str(name)[:80]!r}, expected letters, digits, '_', '-' and '.'")
    return name


def inside(root: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Return `path` as a Path if it stays below the folder `root` when all links are followed.

    `root` itself may be a link. The file need not exist.

    Args:
        root: folder of the data set.
        path: the path to open, including `root`, such as `root / "images" / name`.

    Raises:
        DataError: the path is not below `root`, contains `..`, or leaves `root` through a link; or it is
            neither a file nor a folder (opening a pipe would wait forever).
    """
    path = Path(path)
    try:
        if ".." in path.relative_to(root).parts:
            raise ValueError
        base, real = _real_root(os.path.abspath(root)), os.path.realpath(path)
        mode = os.lstat(real).st_mode if os.path.lexists(real) else 0
    except ValueError:  # not below `root`, or not a name that a file can have
        raise DataError(f"{str(path)!r}: not inside the data set, expected a path below {root}") from None
    if real != base and not real.startswith(base.rstrip(os.sep) + os.sep):
        raise DataError(f"{path}: a link to {real}, expected links to stay inside the data set")
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: neither a file nor a folder, expected a file of the data set")
    return path


@lru_cache(maxsize=64)
def _real_root(root: str) -> str:
    return os.path.realpath(root)


def read_text(path: str | os.PathLike, what: str) -> str:
    """Return the UTF-8 text of a file; `what` says in error messages what the file should be.

    Raises:
        DataError: the file is missing, or is not UTF-8 text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}), expected {what}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}), expected {what}") from error


def read_ids(path: str | os.PathLike) -> list[str]:
    """Return the ids of a list in its order, one per line.

    Raises:
        DataError: the file cannot be read or is empty, or an id is repeated or not a relative path.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "one id per line").split("\n"), start=1):
        id = nfc(line.strip())
        if not id:
            continue
        inner_path(id, f"{path}: line {number}")
        if id in lines:
            raise DataError(f"{path}: line {number}: id {id!r} is also on line {lines[id]}")
        lines[id] = number
    if not lines:
        raise DataError(f"{path}: empty, expected one id per line")
    return list(lines)


def nfc(name: str) -> str:
    """Return a name in Unicode's form NFC, to compare names: file systems store accents in different
    forms."""
    return unicodedata.normalize("NFC", name)


def find_files(folder: Path, suffixes: tuple[str, ...], ids: Iterable[str]) -> dict[str, str]:
    """Return id -> file name below `folder`, for the ids that have a file. Each folder is listed only once.

    Raises:
        DataError: two files have the same id.
    """
    wanted = {nfc(id): id for id in ids}
    found: dict[str, str] = {}
    for parent in _parents(folder, {id.rpartition("/")[0] for id in wanted}):
        for name in sorted(os.listdir(folder / parent)):
            stem, suffix = os.path.splitext(name)
            id = wanted.get(nfc(f"{parent}/{stem}" if parent else stem))
            if id is not None and suffix.lower() in suffixes:
                if id in found:
                    raise DataError(
                        f"{folder / parent}: both {Path(found[id]).name} and {name}, expected one file per id"
                    )
                found[id] = f"{parent}/{name}" if parent else name
    return found


def _parents(folder: Path, wanted: Collection[str]) -> list[str]:
    """Return the subfolders of `folder` whose names in NFC are in `wanted`, as the file system spells
    them."""
    direct = [parent for parent in wanted if (folder / parent).is_dir()]
    if len(direct) == len(wanted) or all(map(str.isascii, wanted)):
        return sorted(direct)
    there = (Path(parent).relative_to(folder).as_posix() for parent, _, _ in os.walk(folder))
    return sorted(name for name in ("" if path == "." else path for path in there) if nfc(name) in wanted)


def foreign_files(folder: Path, suffixes: tuple[str, ...], ids: Collection[str]) -> list[tuple[str, str]]:
    """Return (id in NFC, path below `folder`) of all files that are not one of `ids` with one of `suffixes`.

    Hidden files and those that file managers create are left out.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name).relative_to(folder)
            id = nfc(path.with_suffix("").as_posix())
            left_behind = name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")
            if not left_behind and (path.suffix.lower() not in suffixes or id not in ids):
                found.append((id, path.as_posix()))
    return found


def stray_folders(root: Path, known: Collection[str]) -> list[str]:
    """Return the folders in a data set that nothing reads: neither images, lists of ids nor one of `known`.

    Hidden folders and links are left out.
    """
    folders = (path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    names = {path.name for path in folders} - {"images", "splits", *known}
    return sorted(name for name in names if not name.startswith("."))


def missing_folder(root: Path, task: str, known: Collection[str]) -> str | None:
    """Return a clause if the folder of a task does not exist, with the stray folder of the nearest name."""
    if (root / task).is_dir():
        return None
    return f"no such folder{did_you_mean(task, stray_folders(root, known), ' (', ')')}"
