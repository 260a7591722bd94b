"""Index the files of a shard: their positions are read from the tar's headers once, then from an index file.

The index `000000.tar.index` is text. Its first line is `dmtl-index 1 BYTES` with the size of the tar. Each
other line is `OFFSET SIZE NAME` of a file; OFFSET is the position of its content. An index can be deleted at
any time.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from dmtl.data.shards.member import BLOCK, Shard, is_remote, read_file
from dmtl.errors import DataError, one_line
from dmtl.runtime.files import write_text

HEAD = "dmtl-index 1"
MAX_EXTRA = 1 << 20  # bytes of a long name or of extended attributes


class Place(NamedTuple):
    """A file in a tar: its name, and position and size of its content in bytes."""

    name: str
    offset: int
    size: int


def places(shard: Shard) -> list[Place]:
    """Return the files of a shard in order.

    If the index is missing, or belongs to a tar of another size, the shard is scanned and the index is
    written (unless the folder is read-only or remote).

    Raises:
        DataError: the shard or its index is damaged.
    """
    path = f"{shard.path}.index"
    content = read_file(path)
    if content is not None and (found := _parse(path, content, shard)) is not None:
        return found
    found = list(scan(shard))
    if not is_remote(path):
        with suppress(OSError):  # a read-only folder
            write_index(shard, found)
    return found


def write_index(shard: Shard, found: Iterable[Place]) -> None:
    """Write the index next to the shard, atomically."""
    lines = [f"{HEAD} {shard.size}", *(f"{place.offset} {place.size} {place.name}" for place in found)]
    write_text(f"{shard.path}.index", "\n".join(lines) + "\n")


def _parse(path: str, content: bytes, shard: Shard) -> list[Place] | None:
    """Return the files that an index lists; None if it belongs to a tar of another size."""
    try:
        head, *lines = content.decode().split("\n")
        if head != f"{HEAD} {shard.size}":
            if head.startswith(f"{HEAD} "):
                return None
            raise ValueError(f"line 1 is {head[:60]!r}")
        if not lines or lines.pop():
            raise ValueError("it is cut off")
        found = []
        for number, line in enumerate(lines, start=2):
            offset, size, name = line.split(" ", 2)
            place = Place(name, int(offset), int(size))
            if place.offset < BLOCK or place.size < 0 or place.offset + place.size > shard.size:
                raise ValueError(f"line {number}: beyond the {shard.size} bytes of the tar")
            found.append(place)
        return found
    except ValueError as error:  # UnicodeDecodeError, too
        raise DataError(
            f"{path}: not an index ({one_line(error)}); delete it, and it will be created again"
        ) from None


def scan(shard: Shard) -> Iterator[Place]:
    """Yield the files of an uncompressed tar, as its headers say.

    Python's tarfile is not used, because it silently stops at a damaged header.

    Raises:
        DataError: the tar is damaged or compressed; the message names the shard and the position in it.
    """
    at, name, size = 0, "", -1  # `name` and `size` are of the next file, if the members before it set them
    while True:
        block = shard.read(at, BLOCK)
        if block == bytes(BLOCK):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(
                f"{shard.path}: no file at byte {at} ({one_line(error)}), expected an uncompressed tar and "
                "its end"
            ) from None
        content, kind = at + BLOCK, header.type
        if header.isreg() and not header.issparse():
            place = Place(name or header.name, content, header.size if size < 0 else size)
            if place.offset + place.size > shard.size or place.size < 0:
                raise DataError(
                    f"{shard.path}/{place.name[:200]}: the tar ends before its {place.size} bytes, expected "
                    "a complete tar"
                )
            if not place.name.isprintable():
                raise DataError(f"{shard.path}: {place.name[:80]!r} at byte {at}, expected a printable name")
            yield place
            name, header.size, size = "", place.size, -1
        elif kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if header.size > MAX_EXTRA:
                raise DataError(f"{shard.path}: {header.size} bytes of attributes at byte {at}")
            extra = shard.read(content, header.size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                name = extra.split(b"\0")[0].decode("utf-8", "surrogateescape")
            else:
                name, size = _attributes(extra, f"{shard.path}: attributes at byte {at}", name, size)
        elif not (header.isdir() or kind == tarfile.XGLTYPE):
            raise DataError(f"{shard.path}/{header.name[:200]}: neither a file nor a folder, expected a file")
        at = content + -(-max(0, header.size) // BLOCK) * BLOCK


def _attributes(extra: bytes, where: str, name: str, size: int) -> tuple[str, int]:
    """Return name and size of the next file, updated by a pax header: lines of `LENGTH KEY=VALUE`."""
    try:
        while extra.strip(b"\0"):
            length = int(extra.split(b" ", 1)[0])
            key, value = extra[:length].split(b" ", 1)[1].split(b"=", 1)
            if length < 5 or value[-1:] != b"\n":
                raise ValueError
            if key == b"path":
                name = value[:-1].decode()
            elif key == b"size":
                size = int(value)
            extra = extra[length:]
    except (ValueError, IndexError):
        raise DataError(f"{where}: damaged, expected LENGTH KEY=VALUE") from None
    return name, size
