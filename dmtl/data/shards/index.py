"""Where every file of a shard is: read from its headers once, then from an index next to it.

`000000.tar.index` is text: a line `dmtl-index 1 BYTES` with the size of the tar, then for each file a line
`OFFSET SIZE NAME`, where OFFSET is that of its content. Deleting it is safe.
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
    """A file of a tar: its name, and where its content is, in bytes."""

    name: str
    offset: int
    size: int


def places(shard: Shard) -> list[Place]:
    """Return the files of a shard, in its order.

    An index of a tar of another size, or one that is missing, is made again and written if the folder can be.

    Raises:
        DataError: shard or index is damaged.
    """
    path = f"{shard.path}.index"
    content = read_file(path)
    if content is not None and (found := _parse(path, content, shard)) is not None:
        return found
    found = list(scan(shard))
    if not is_remote(path):
        with suppress(OSError):  # a folder that is read only
            write_index(shard, found)
    return found


def write_index(shard: Shard, found: Iterable[Place]) -> None:
    """Write the index next to the shard, atomically."""
    lines = [f"{HEAD} {shard.size}", *(f"{place.offset} {place.size} {place.name}" for place in found)]
    write_text(f"{shard.path}.index", "\n".join(lines) + "\n")


def _parse(path: str, content: bytes, shard: Shard) -> list[Place] | None:
    """Return what an index says; None if it is of a tar of another size."""
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
                raise ValueError(f"line {number}: outside of the {shard.size} bytes of the tar")
            found.append(place)
        return found
    except ValueError as error:  # UnicodeDecodeError, too
        raise DataError(
            f"{path}: not an index ({one_line(error)}); delete it to have it made again"
        ) from None


def scan(shard: Shard) -> Iterator[Place]:
    """Yield the files of a tar from its headers, which Python's tarfile would silently end at a damaged one.

    Raises:
        DataError: naming shard and place; a compressed tar is not a tar.
    """
    at, name, size = 0, "", -1  # `name` and `size` of the next file, if members before it say so
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
                raise DataError(f"{shard.path}/{place.name[:200]}: its {place.size} bytes are not all there")
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
    """Return name and size of the next file; of a pax header, `LENGTH KEY=VALUE` and a line break each."""
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
