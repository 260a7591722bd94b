"""Damage to files, a function of the generator alone."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from copy import deepcopy
from random import Random

NUMBERS = (
    0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 1 << 20, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
WORDS = (
    b"-1", b"0", b"nan", b"inf", b"1e999", b"9" * 20, b"9" * 400, b"'", b'"', b"\n", b"\0", b"{", b"[" * 40,
    b"]", b",", b":", b"&a ", b"*a", b"!!python/object/apply:os.system [false]", b"..", b"/", b"\\",
    b"\xff\xfe", b"\xe2\x80\xa8", b"\x1b[31m", b"cos\nsystem\n",
)  # fmt: skip


def mutate(rng: Random, content: bytes, other: bytes) -> bytes:
    """`content` with a few kinds of damage; `other` is a file to take parts from."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 4))):
        rng.choice(OPERATIONS)(rng, data, other)
    return bytes(data)


def _place(rng: Random, data: bytearray) -> int:
    """Anywhere, but half of the time where headers and directories stand."""
    kind = rng.random()
    if kind < 0.35:
        return rng.randrange(min(len(data), 128) + 1)
    return len(data) - rng.randrange(min(len(data), 128) + 1) if kind < 0.5 else rng.randrange(len(data) + 1)


def _range(rng: Random, data: bytearray) -> slice:
    start = _place(rng, data)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, 64, 1 + rng.randrange(len(data) + 1))))


def flip_bits(rng: Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        if data:
            data[min(_place(rng, data), len(data) - 1)] ^= 1 << rng.randrange(8)


def noise(rng: Random, data: bytearray, other: bytes) -> None:
    where = _range(rng, data)
    data[where] = rng.randbytes(len(data[where]))


def truncate(rng: Random, data: bytearray, other: bytes) -> None:
    del data[_place(rng, data) :]


def delete(rng: Random, data: bytearray, other: bytes) -> None:
    del data[_range(rng, data)]


def insert(rng: Random, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    data[place:place] = rng.randbytes(rng.choice((1, 2, 4, 16, 300)))


def duplicate(rng: Random, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    data[place:place] = bytes(data[_range(rng, data)]) * rng.choice((1, 1, 2, 20))


def exchange(rng: Random, data: bytearray, other: bytes) -> None:
    first, second = _range(rng, data), _range(rng, data)
    data[first], data[second] = bytes(data[second]), bytes(data[first])


def splice(rng: Random, data: bytearray, other: bytes) -> None:
    taken = bytes(other[_range(rng, bytearray(other))])
    data[_range(rng, data)] = taken


def number(rng: Random, data: bytearray, other: bytes) -> None:
    """A length, a size, an offset: of 1 to 8 bytes in either order, an odd value or near the one it had."""
    place, size, order = _place(rng, data), rng.choice((1, 2, 4, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice(NUMBERS)
    if rng.random() < 0.4:
        value = int.from_bytes(data[place : place + size], order) + rng.choice((-2, -1, 1, 2, 8, 256))
    data[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, order)


def digits(rng: Random, data: bytearray, other: bytes) -> None:
    """A number written out."""
    found = list(re.finditer(rb"-?\d+", data))
    if found:
        value = str(rng.choice(NUMBERS) * rng.choice((1, 1, -1))).encode()
        where = rng.choice(found)
        data[where.start() : where.end()] = value


def word(rng: Random, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    data[place : place + rng.choice((0, 0, 1, 4))] = rng.choice(WORDS)


OPERATIONS = (
    flip_bits, flip_bits, noise, truncate, delete, insert, duplicate, exchange, splice, number, number,
    digits, word,
)  # fmt: skip


# What a format's checksums would hide from its reader.


def png(rng: Random, content: bytes, other: bytes) -> bytes:
    """A damaged PNG, most of the time with the checksums of its chunks made right."""
    data = bytearray(mutate(rng, content, other))
    place = 8
    while rng.random() < 0.97 and place + 12 <= len(data):
        length = struct.unpack_from(">I", data, place)[0]
        if place + 12 + length > len(data):
            break
        struct.pack_into(">I", data, place + 8 + length, zlib.crc32(data[place + 4 : place + 8 + length]))
        place += 12 + length
    return bytes(data)


def zipped(rng: Random, content: bytes, other: bytes) -> bytes:
    """A damaged file; of a zip file, half of the time, one member damaged and its checksum right."""
    if not content.startswith(b"PK") or rng.random() < 0.5:
        return mutate(rng, content, other)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice(sorted(members))
    members[chosen] = mutate(rng, members[chosen], rng.choice((other, *members.values())))
    made = io.BytesIO()
    with zipfile.ZipFile(
        made, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    ) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return made.getvalue()


ODD = (
    None, True, -1, 0, 1, 0.5, 7, 64, 1e6, 1e9, 1e308, float("nan"), float("inf"), 10**400, "", " ", "x", "3",
    "../a.png", "/a.png", "a\n", "\ud800", [], [[]], [1], [1, 2], [1, 2, 3, 4, 5, 6], {}, {"x": 1},
)  # fmt: skip


def annotation(rng: Random, content: bytes, other: bytes) -> bytes:
    """A damaged file; of JSON and XML, mostly one value that still parses is another one, or gone."""
    if rng.random() < 0.3:
        return mutate(rng, content, other)
    if content.startswith(b"<?xml"):
        found = list(re.finditer(rb'="([^"]*)"|>([^<]*)<', content))
        where = rng.choice(found)
        value = str(rng.choice(ODD)).encode(errors="replace")
        return (
            content[: where.start() + 1] + b'"%s"' % value + content[where.end() :]
            if where[1]
            else (content[: where.start() + 1] + value + content[where.end() - 1 :])
        )
    try:
        root = json.loads(content)
    except ValueError:
        return png(rng, content, other) if content.startswith(b"\x89PNG") else mutate(rng, content, other)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(list(_values(root)))
        if isinstance(holder, dict) and rng.random() < 0.2:
            holder.pop(key, None)
        else:
            holder[key] = deepcopy(rng.choice(ODD))
    return json.dumps(root).encode()


def _values(node: object) -> Iterator[tuple]:
    """Every (container, key) below a value."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _values(node[key])
