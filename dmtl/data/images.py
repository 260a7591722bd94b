"""Read and write images and label files. Training, evaluation and prediction all read pixels here.

An image is read as viewers show it: turned by its orientation tag, with transparent pixels on white, 16-bit
grey scaled to 8 bits, and CMYK and palettes converted to RGB. A label or map is read as its file stores it:
4-bit grey is 0 to 15. If anything is wrong with a file, DataError names it. Sizes are checked in the header
before any pixel is decoded, because a small file can claim to be enormous.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dmtl.data.opening import MAX_PIXELS, BoundedFile, check_size, opened
from dmtl.data.shards.member import AnyFile
from dmtl.errors import DataError, one_line
from dmtl.runtime.files import write_bytes

MAX_HEADER = 1 << 16  # bytes of the header of a .npy file: more than any array of numbers needs
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jfif",
    ".jpe", ".heic", ".heif", ".avif",
)  # fmt: skip
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
_ORIENTATION, _PHOTOMETRIC, _SAMPLE_FORMAT, _BITS = 0x0112, 262, 339, 258
_STEPS = {"L;2": 85, "L;4": 17}  # factor by which Pillow multiplies grey values of 2 and 4 bits
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: AnyFile, *, upright: bool = True) -> Tensor:
    """Read an image file as RGB, uint8 [3, H, W]; if it has several frames, the first.

    Args:
        path: a file, or a member of a shard.
        upright: follow the orientation tag; False: return the pixels as they are stored.

    Raises:
        DataError: the file is missing, not an image, damaged, truncated or larger than 64 million pixels.
    """
    with opened(path) as image:
        return to_rgb(image, upright=upright)


def to_rgb(image: Image.Image, *, upright: bool = True) -> Tensor:
    """Convert a Pillow image of any mode to RGB, uint8 [3, H, W], by the rules of this module.

    Args:
        image: the image; it may not be decoded yet.
        upright: follow the orientation tag; False: keep the pixels as they are stored.

    Raises:
        DataError: more than 64 million pixels, or pixels for which the value of white is unknown
            (floating-point numbers, grey of more than 16 bits).
    """
    check_size(image)
    if image.mode in ("F", "LAB"):
        raise DataError(f"pixels of mode {image.mode}, expected grey, RGB or CMYK of 8 or 16 bits")
    white, negative = _white(image), _tag(image, _PHOTOMETRIC) == 0
    image = _upright(image) if upright else image
    if image.mode.startswith("I"):
        grey = _sixteen_bits(image)
        shade = (grey * 255 + white // 2) // white
        shade = 255 - shade if negative else shade  # Pillow itself does this only for 8 bits
        shade[grey == image.info.get("transparency", -1)] = 255
        pixels = np.repeat(shade.astype(np.uint8)[..., None], 3, axis=2)
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def image_size(path: AnyFile, *, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of the image that `read_image` returns.

    Pixels are decoded only if the orientation tag swaps height and width.
    """
    with opened(path) as image:
        if upright and _orientation(image, early=True) > 4:
            image = _upright(image)
        return image.height, image.width


@dataclass(frozen=True)
class Appearance:
    """Why an image file may look different from its stored pixels.

    Attributes:
        orientation: its orientation tag, 1 to 8; 1 without a valid tag.
        transparent: it has an alpha channel, or a transparent palette index or colour.
    """

    orientation: int
    transparent: bool


def appearance(path: AnyFile) -> Appearance:
    """Return the `Appearance` of an image file, without decoding its pixels."""
    with opened(path) as image:
        return Appearance(_orientation(image, early=True), image.has_transparency_data)


def turned_hint(path: AnyFile, found: Sequence[int], size: tuple[int, int]) -> str:
    """Explain a label of the wrong size if it fits the image as stored, before its orientation tag turns it.

    Args:
        path: the image file.
        found: (height, width) of the label.
        size: (height, width) of the image as viewers show it.

    Returns:
        A clause for the error message that says what to do; "" if the tag does not explain the size.
    """
    if tuple(found) != size[::-1] or (tag := appearance(path).orientation) < 5:
        return ""
    return (
        f"its orientation tag {tag} turns the stored {size[0]}x{size[1]} pixels. Draw the label on the image "
        "as shown, or remove the tag from the image"
    )


@dataclass(frozen=True)
class Codes:
    """The content of a label or map file.

    Attributes:
        values: the array, as `read_label_image` returns it.
        numbers: True: `values` are the actual numbers (.npy, some TIFFs); False: they are codes, as in a PNG.
        most: the largest code that a pixel of the file can hold; None for palette indices and for numbers.
        reading: (scale, offset) if the file says that value = offset + scale * code, as files of `dmtl
            predict` do; otherwise None.
    """

    values: np.ndarray
    numbers: bool = False
    most: int | None = None
    reading: tuple[float, float] | None = None


def read_codes(path: AnyFile, *, colours: bool = False) -> Codes:
    """Read the stored values of a label or map in a PNG or TIFF file, turned by its orientation tag.

    Args:
        path: a file, or a member of a shard.
        colours: return 8-bit pixels, including those with a palette, as colours, uint8 [H, W, 3].

    Raises:
        DataError: as for `read_image`; also if values would be ambiguous or rounded.
    """
    with opened(path) as image:
        if image.format not in ("PNG", "TIFF"):
            raise DataError(f"a {image.format} file, expected PNG, TIFF or .npy, which hold labels exactly")
        if image.mode not in ("L", "P", "1", "RGB", "F") and not image.mode.startswith("I"):
            raise DataError(
                f"pixels of mode {image.mode}, expected 8-bit grey or palette, 16-bit grey, RGB or numbers"
            )
        if _tag(image, _PHOTOMETRIC) == 0 and image.mode != "F":
            raise DataError("a TIFF in which 0 is white, expected one in which 0 is black")
        raw = _raw_mode(image)
        if raw.startswith("RGB;16"):
            raise DataError("RGB of 16 bits, expected RGB of 8 bits or a .npy of floats")
        step, white, reading = _STEPS.get(raw[:3], 1), _white(image), _own_reading(image)
        signed = _tag(image, _SAMPLE_FORMAT) == 2
        whole = image.format == "TIFF" and image.mode == "I"  # 32 bits, or 16 with a sign
        image = _upright(image)
        if signed and image.mode == "L":
            return Codes(np.array(image).view(np.int8), numbers=True)
        if whole:
            values = np.array(image)
            if not signed and values.min() < 0:
                raise DataError("whole numbers of 32 bits above 2147483647, expected smaller ones")
            return Codes(values, numbers=True)
        if colours and image.mode in ("L", "P", "1"):
            image, step = image.convert("RGB"), 1
        if image.mode.startswith("I"):
            return Codes(_sixteen_bits(image).astype(np.uint16), most=white, reading=reading)
        if image.mode == "F":
            return Codes(np.array(image), numbers=True)
        values = np.array(image).astype(np.uint8, copy=False) // step
        most = {"P": None, "1": 1}.get(image.mode, 255 // step)
        return Codes(values, most=most, reading=reading)


def read_label_image(path: AnyFile) -> np.ndarray:
    """Read the stored values of a label map in a PNG or TIFF file (`read_codes`).

    Returns:
        uint8 [H, W] for grey or palette indices of 1 to 8 bits, uint8 [H, W, 3] for RGB, uint16 [H, W] for
        16-bit grey. A TIFF can also hold numbers, as a .npy does: int8, int32 or float32 [H, W].
    """
    return read_codes(path).values


def read_npy(path: AnyFile) -> np.ndarray:
    """Read an array of numbers from a .npy file.

    The size that the header claims is compared with that of the file before anything is allocated.

    Raises:
        DataError: the file is missing, damaged, or does not hold numbers; the message names it.
    """
    try:
        with BoundedFile(path) as file:
            # NumPy would allocate whatever a header claims, which may be gigabytes.
            head = io.BytesIO(file.read(MAX_HEADER))
            version = np.lib.format.read_magic(head)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"format version {version}")
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(head)
            count = 1
            for length in shape:  # Python integers: no overflow
                count *= int(length)
            stored = file.length - head.tell()
            if dtype.kind not in "buif":
                raise ValueError(f"holds {dtype}")
            if count < 0 or count * dtype.itemsize != stored:
                raise ValueError(
                    f"its header claims {count * dtype.itemsize} bytes of data, but the file has {stored}"
                )
            if len(shape) < 2 or count > 3 * MAX_PIXELS or 0 in shape:
                raise ValueError(f"has shape {shape}")
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected a .npy file"
        ) from error
    except Exception as error:  # numpy parses the header as Python literals: many exception types can surface
        raise DataError(
            f"{path}: not a readable array ({one_line(error)}), expected a .npy file of numbers"
        ) from error


def png_bytes(
    image: np.ndarray | Tensor | Image.Image, level: int = 3, reading: Mapping[str, float] | None = None
) -> bytes:
    """Encode an image as a PNG file.

    Args:
        image: uint8 [H, W] or [H, W, 3], or uint16 [H, W]; or any image that Pillow can write.
        level: compression, from 1 (fast) to 9 (small).
        reading: {"offset": ..., "scale": ...} of the values, for the text chunk "dmtl"; empty or None: no
            chunk.
    """
    if not isinstance(image, Image.Image):
        pixels = np.ascontiguousarray(image)
        grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
        if not grey and not (pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8):
            raise ValueError(
                "png_bytes: image must be uint8 [H, W] or [H, W, 3] or uint16 [H, W], "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )
        image = Image.fromarray(pixels)
    stream, info = io.BytesIO(), PngInfo()
    if reading:
        info.add_text("dmtl", json.dumps(reading))
    image.save(stream, "PNG", compress_level=level, pnginfo=info)
    return stream.getvalue()


def npy_bytes(array: np.ndarray | Tensor) -> bytes:
    """Encode an array of numbers as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def write_npy(path: str | os.PathLike, array: np.ndarray | Tensor) -> None:
    """Write an array as a .npy file (`npy_bytes`), atomically."""
    write_bytes(Path(path), npy_bytes(array))


def _orientation(image: Image.Image, *, early: bool = False) -> int:
    """Return the orientation tag, 1 to 8. `early`: do not decode pixels to find it."""
    try:
        if early and image.format == "PNG" and "exif" not in image.info:
            _find_late_tags(image)
        # Call the base class: for a PNG file, Pillow's override decodes all pixels to look for tags after
        # them.
        tag = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # damaged metadata, which viewers ignore
        return 1
    return tag if tag in _TURNS else 1


def _find_late_tags(image: Image.Image) -> None:
    """Add the tags that a PNG file has after its pixels; Pillow alone finds them only by decoding the
    pixels."""
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]  # images of files have it
    place = file.tell()
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            image.info["exif"] = b"Exif\0\0" + file.read(length)
            break
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(place)


def _tag(image: Image.Image, number: int, default: int | None = None) -> int | None:
    """Return the first value of a tag of an open TIFF file; `default` for other files."""
    found = getattr(image, "tag_v2", {}).get(number, default)
    return found[0] if isinstance(found, tuple) else found


def _raw_mode(image: Image.Image) -> str:
    """Return how an open PNG or TIFF file packs its pixels, in Pillow's terms: "L;4" is grey of 4 bits."""
    tiles = getattr(image, "tile", None)
    packing = tiles[0][3] if tiles else image.mode
    return str(packing if isinstance(packing, str) else packing[0])


def _white(image: Image.Image) -> int:
    """Return the value of white in 16-bit grey; a TIFF may use fewer bits."""
    bits = _tag(image, _BITS, 16) or 16
    return (1 << bits) - 1 if 8 < bits < 16 else 65535


def _own_reading(image: Image.Image) -> tuple[float, float] | None:
    """Return (scale, offset) from the text chunk "dmtl" of a PNG file; None without that chunk."""
    text = image.info.get("dmtl")
    if image.format != "PNG" or text is None:
        return None
    try:
        found = json.loads(text)
        scale, offset = float(found["scale"]), float(found["offset"])
        if math.isfinite(scale) and math.isfinite(offset):
            return scale, offset
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        pass
    raise DataError(f'text chunk "dmtl" is {str(text)!r:.80}, expected {{"offset": ..., "scale": ...}}')


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # for a TIFF, this turns the image and removes the tag
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    """Return grey values of 0 to 65535 as int64 [H, W]; raise DataError for others."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise DataError(f"pixels range from {grey.min()} to {grey.max()}, expected 16-bit ones (0 to 65535)")
    return grey
