"""Image files of the kinds that Pillow reads but does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

ORIENTATION = 0x0112


def packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of whole numbers or floats, each beginning with a byte of its own."""
    if bits >= 8:
        kind = values.dtype.kind if values.dtype.kind in "fi" else "u"
        return values.astype(f"{order}{kind}{bits // 8}").tobytes()
    ones = values.astype(np.uint8)[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(ones.reshape(len(values), -1), axis=1).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation: int) -> bytes:
    """The content of a chunk eXIf."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def png(values: np.ndarray, bits: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of grey [H, W], RGB [H, W, 3] or RGBA; `before` and `after` are chunks around the pixels."""
    kind = {2: 0, 3: 2}[values.ndim] if values.shape[2:] != (4,) else 6
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    rows = [b"\0" + packed(row[None], bits) for row in values]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + after
        + chunk(b"IEND", b"")
    )


def tiff(
    values: np.ndarray,
    bits: int = 8,
    order: str = "<",
    *,
    photometric: int | None = None,
    orientation: int = 1,
) -> bytes:
    """A TIFF of one strip without compression; the dtype says whether numbers have a sign or are floats."""
    channels = values.shape[2] if values.ndim == 3 else 1
    pixels = packed(values, bits, order)
    photometric = (1 if channels == 1 else 2) if photometric is None else photometric
    format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind if values.dtype.kind in "if" else "u"]
    shorts = {256: values.shape[1], 257: values.shape[0], 259: 1, 262: photometric, ORIENTATION: orientation}
    shorts |= {277: channels, 278: values.shape[0]}
    longs = {273: 8, 279: len(pixels)}
    lists = {258: bits, 339: format}
    entries, data, at = b"", pixels + b"\0" * (len(pixels) % 2), 8 + len(pixels) + len(pixels) % 2
    for tag in sorted((*shorts, *longs, *lists)):
        if tag in lists and channels > 2:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, at)
            data += struct.pack(f"{order}{channels}H", *[lists[tag]] * channels)
            at += 2 * channels
        elif tag in longs:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, longs[tag])
        else:
            entries += struct.pack(f"{order}HHIHH", tag, 3, 1, (shorts | lists)[tag], 0)
    count = len(shorts) + len(longs) + len(lists)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, at)
    return head + data + struct.pack(f"{order}H", count) + entries + bytes(4)
