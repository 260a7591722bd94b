"""Read one file of an uncompressed tar by its position, from a disk or any file system of fsspec.

As in WebDataset, the files of a sample have the same key:

    city/0001.jpg            the image `city/0001`
    city/0001.semseg.png     its label of the task semseg
    city/0001.depth.npy

A key ends at the first dot of the file's name, so a dot of an id is written %2E, and % is written %25.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from dmtl.data.folder.paths import nfc
from dmtl.errors import DataError, one_line

BLOCK = 512  # bytes: the unit of a tar, and the length of a header
IMAGES = "images"  # the folder of images in the folder format; in a tar, an image is just KEY.SUFFIX
_LONG = 100  # maximum bytes of a name in a header; a longer name is in a separate member before it


def member_name(folder: str, id: str, suffix: str) -> str:
    """Return the name in a shard of the file `folder/id.suffix` of the folder format."""
    parent, slash, base = id.rpartition("/")
    key = base.replace("%", "%25").replace(".", "%2E")
    return f"{parent}{slash}{key}{'' if folder == IMAGES else '.' + folder}{suffix}"


def split_name(name: str) -> tuple[str, str, str]:
    """Return (folder, id in NFC, suffix) for the name of a file in a shard: the inverse of `member_name`."""
    parent, slash, base = name.removeprefix("./").rpartition("/")
    key, _, rest = base.partition(".")
    folder, _, suffix = rest.rpartition(".")
    id = f"{parent}{slash}{key.replace('%2E', '.').replace('%25', '%')}"
    return folder or IMAGES, nfc(id), f".{suffix}"


@dataclass(frozen=True)
class Shard:
    """A tar file: its path or URL, size in bytes, and time of change in nanoseconds (0 if unknown)."""

    path: str
    size: int
    changed: int = 0

    @classmethod
    def of(cls, path: str) -> Shard:
        """Return the shard at a path or URL; raise DataError if there is no such file."""
        try:
            if is_remote(path):
                system, inner = _file_system(path)
                return cls(path, int(system.size(inner)))
            status = os.stat(path)
            return cls(path, status.st_size, status.st_mtime_ns)
        except DataError:
            raise
        except Exception as error:  # fsspec's packages raise many types
            raise DataError(f"{path}: cannot be read ({one_line(error)}), expected a shard") from error

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, or fewer at the end of the file.

        Raises:
            DataError: the file cannot be read; the message does not name it.
        """
        try:
            # Each process opens the file itself: a forked one must not use its parent's connections.
            return _opened(self, os.getpid()).read(offset, size)
        except Exception as error:  # as above
            raise DataError(f"cannot be read ({one_line(error)})") from error


@dataclass(frozen=True)
class Member:
    """A file in a shard: its content begins at `offset`, right after its header."""

    shard: Shard
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard.path}/{self.name}"

    @property
    def suffix(self) -> str:
        return split_name(self.name)[2]

    def read_bytes(self) -> bytes:
        """Return the content; raise DataError, which names shard and member, if it cannot be read."""
        try:
            return self.content()
        except DataError as error:
            raise DataError(f"{self}: {error}") from None

    def content(self) -> bytes:
        """Return the content. The header before it is read too, to check that it belongs to this file.

        Raises:
            DataError: the content cannot be read; the message does not name the file.
        """
        found = self.shard.read(self.offset - BLOCK, BLOCK + self.size)
        if len(found) < BLOCK + self.size:
            raise DataError(f"the shard has {len(found)} of its {BLOCK + self.size} bytes: truncated?")
        try:
            header = tarfile.TarInfo.frombuf(found[:BLOCK], "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            wrong = f"no header before it ({one_line(error)}): damaged, or the index belongs to another tar"
            raise DataError(wrong) from None
        shortened = len(self.name.encode()) > _LONG or not self.name.isascii()
        if header.size != self.size or not (shortened or split_name(header.name) == split_name(self.name)):
            raise DataError(
                f"{header.name!r:.80} of {header.size} bytes is in its place: the index is wrong, delete it"
            )
        return found[BLOCK:]


AnyFile: TypeAlias = str | os.PathLike | Member
"""Types of the sources of images and labels: files, and members of shards."""


def is_shards(root: str) -> bool:
    """Return whether a root names tar files."""
    return root.endswith(".tar")


def is_remote(path: str) -> bool:
    """Return whether fsspec opens a path: it is a URL, or several chained by `::`."""
    return "://" in path or "::" in path


def read_file(path: str) -> bytes | None:
    """Return the content of a whole file, such as an index; None if it does not exist.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if not is_remote(path):
            return Path(path).read_bytes()
        system, inner = _file_system(path)
        return system.cat_file(inner)
    except FileNotFoundError:
        return None
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise DataError(f"{url}: a URL needs fsspec: pip install fsspec") from None
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:  # of one protocol
        raise DataError(f"{url}: {one_line(error)}") from error


@lru_cache(maxsize=256)
def _opened(shard: Shard, process: int) -> _Local | _Remote:
    return _Remote(shard.path) if is_remote(shard.path) else _Local(shard.path)


class _Local:
    """An open file, closed after its last use: a thread may still read when the cache drops it."""

    def __init__(self, path: str):
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.handle, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


class _Remote:
    def __init__(self, url: str):
        self.system, self.path = _file_system(url)

    def read(self, offset: int, size: int) -> bytes:
        return self.system.cat_file(self.path, start=offset, end=offset + size)
