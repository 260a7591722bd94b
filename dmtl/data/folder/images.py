"""Reads and writes images and label maps. Whatever is wrong with a file ends in a DataError that names it.

Sizes are checked on the header, before a single pixel is decoded: a small file can claim to be enormous.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmtl.data.folder.read_once import open_file, remembered
from dmtl.errors import DataError, one_line
from dmtl.runtime.files import write_bytes

MAX_PIXELS = 64_000_000
MAX_HEADER = 1 << 16  # of a .npy file: more than any array of numbers needs
MAX_RATIO = 2000
"""Bytes of pixels to one of the file: deflate reaches 1032, JPEG about 1200. Missing rows Pillow makes up."""
FORMATS = ("JPEG", "PNG")  # no other decoder of Pillow is ever reached
_IMAGE_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "1")


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) from the header; no pixel is decoded."""
    with _open(path) as image:
        return image.height, image.width


@remembered
def read_image(path: str | os.PathLike, *, upright: bool = False) -> Tensor:
    """An RGB image, uint8 [3, H, W]. Grey and palette images are converted, transparency is dropped.

    `upright` follows the camera's orientation tag; label maps are drawn on the stored pixels, so data
    sets do not.
    """
    with _open(path) as image:
        if image.mode not in _IMAGE_MODES:
            raise DataError(f"{path}: pixels of mode {image.mode}, expected an 8-bit image")
        pixels = _decode(
            path, lambda: np.array((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@remembered
def read_png_map(path: str | os.PathLike) -> np.ndarray:
    """A stored label map: uint8 [H, W] (grey, palette indices, 1 bit), uint16 [H, W] or uint8 [H, W, 3]."""
    with _open(path) as image:
        if image.mode not in ("L", "P", "1", "I", "I;16", "I;16B", "RGB"):
            raise DataError(
                f"{path}: pixels of mode {image.mode}, expected 8-bit grey or palette, 16-bit grey or RGB"
            )
        pixels = _decode(path, lambda: np.array(image))
    if image.mode in ("I", "I;16", "I;16B"):
        return pixels.astype(np.uint16)
    return pixels.astype(np.uint8, copy=False)


@remembered
def read_npy(path: str | os.PathLike) -> np.ndarray:
    """An array of numbers from a .npy file; its header is held against the file's size before reading."""
    try:
        with open_file(path) as file:
            head = io.BytesIO(
                file.read(MAX_HEADER)
            )  # a header may claim gigabytes, and they would be allocated
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
                    f"its header promises {count * dtype.itemsize} bytes of data, the file has {stored}"
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


def png_bytes(pixels: np.ndarray | Tensor) -> bytes:
    """uint8 [H, W] or [H, W, 3], or uint16 [H, W], as a PNG file."""
    pixels = np.ascontiguousarray(pixels)
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    if not grey and not (pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8):
        raise ValueError(
            "png_bytes: pixels must be uint8 [H, W] or [H, W, 3] or uint16 [H, W], "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def npy_bytes(array: np.ndarray | Tensor) -> bytes:
    """An array of numbers as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def write_png(path: str | os.PathLike, pixels: np.ndarray | Tensor) -> None:
    """Writes `png_bytes`; the file appears complete or not at all."""
    write_bytes(path, png_bytes(pixels))


def write_npy(path: str | os.PathLike, array: np.ndarray | Tensor) -> None:
    """Writes `npy_bytes`; the file appears complete or not at all."""
    write_bytes(path, npy_bytes(array))


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Image.Image]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(path))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
                image = stack.enter_context(Image.open(file, formats=FORMATS))
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{path}: too large, expected at most {MAX_PIXELS / 1e6:.0f} million pixels"
            ) from error
        except Image.UnidentifiedImageError as error:
            raise DataError(f"{path}: not an image, expected JPEG or PNG") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({one_line(error)}), expected JPEG or PNG") from error
        except Exception as error:  # Pillow's parsers let many exception types through on damaged headers
            raise DataError(f"{path}: damaged header ({one_line(error)}), expected JPEG or PNG") from error
        if image.width * image.height > MAX_PIXELS:
            raise DataError(
                f"{path}: too large ({image.width}x{image.height}), "
                f"expected at most {MAX_PIXELS / 1e6:.0f} million pixels"
            )
        bits = 8 * len(image.getbands()) if len(image.getbands()) > 1 else 1  # of a pixel, at least
        if image.width * image.height * bits > 8 * MAX_RATIO * file.length:
            raise DataError(
                f"{path}: {image.width}x{image.height} pixels in {file.length} bytes, "
                "expected a complete image"
            )
        yield image


def _decode(path: str | os.PathLike, decode: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return decode()
    except (
        Exception
    ) as error:  # truncated data, wrong checksums, broken chunks: OSError, SyntaxError, ValueError...
        raise DataError(
            f"{path}: damaged or truncated ({one_line(error)}), expected a complete image"
        ) from error
