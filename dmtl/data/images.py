"""Read and write images and label files. Training, evaluation and prediction all read pixels here.

An image is read as viewers show it: turned by its orientation tag, transparency on white, 16-bit grey scaled
to 8 bits, CMYK and palettes as RGB. Whatever is wrong with a file ends in a DataError that names it. Sizes
are checked on the header, before a pixel is decoded: a small file can claim to be enormous.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmtl.errors import DataError, one_line
from dmtl.runtime.files import write_bytes

MAX_PIXELS = 64_000_000
MAX_HEADER = 1 << 16  # of a .npy file: more than any array of numbers needs
MAX_RATIO = 2000
"""Bytes of pixels to one of a JPEG or PNG file: deflate reaches 1032, JPEG about 1200. Pillow would make up
missing rows."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # no other decoder of Pillow is ever reached
_LIMIT = f"expected at most {MAX_PIXELS // 1_000_000} million pixels"
_EXPECTED = f"expected an image ({', '.join(FORMATS)})"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike, *, upright: bool = True) -> Tensor:
    """Read an image file as RGB, uint8 [3, H, W]; the first frame of a file that has several.

    Args:
        upright: follow the orientation tag. False gives the pixels as they are stored.

    Raises:
        DataError: the file is missing, not an image, damaged, truncated or larger than 64 million pixels.
    """
    with _opened(path) as image:
        return to_rgb(image, upright=upright)


def to_rgb(image: Image.Image, *, upright: bool = True) -> Tensor:
    """Convert a Pillow image of any mode to RGB, uint8 [3, H, W], by the rules of this module.

    Raises:
        DataError: more than 64 million pixels, or values whose white is unknown (floating-point pixels, grey
            beyond 16 bits).
    """
    _check_size(image)
    if image.mode in ("F", "LAB"):
        raise DataError(f"pixels of mode {image.mode}, expected grey, RGB or CMYK of 8 or 16 bits")
    image = _upright(image) if upright else image
    if image.mode.startswith("I"):
        pixels = np.repeat(((_sixteen_bits(image) + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def image_size(path: str | os.PathLike, *, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of what `read_image` gives; pixels are decoded only if a tag turns the image."""
    with _opened(path) as image:
        if upright and _orientation(image) > 4:
            image = _upright(image)
        return image.height, image.width


def orientation_of(path: str | os.PathLike) -> int:
    """Return the orientation tag of an image file, 1 to 8; 1 if it has none that means anything."""
    with _opened(path) as image:
        return _orientation(image)


def has_transparency(path: str | os.PathLike) -> bool:
    """Return whether an image file has an alpha channel, or a palette index or colour that is transparent."""
    with _opened(path) as image:
        return image.has_transparency_data


def read_label_image(path: str | os.PathLike, *, colours: bool = False) -> np.ndarray:
    """Read the label map of a PNG or TIFF file as it is stored, turned by its orientation tag.

    Args:
        colours: give the colours of 8-bit pixels, of a palette too, as uint8 [H, W, 3].

    Returns:
        uint8 [H, W] (grey, palette indices, 1 bit), uint8 [H, W, 3] (RGB), uint16 [H, W] (16-bit grey) or
        float32 [H, W] (numbers in a TIFF).
    """
    with _opened(path) as image:
        if image.mode not in ("L", "P", "1", "RGB", "F") and not image.mode.startswith("I"):
            raise DataError(
                f"pixels of mode {image.mode}, expected 8-bit grey or palette, 16-bit grey, RGB or numbers"
            )
        image = _upright(image)
        if colours and image.mode in ("L", "P", "1"):
            image = image.convert("RGB")
        if image.mode.startswith("I"):
            return _sixteen_bits(image).astype(np.uint16)
        return np.array(image) if image.mode == "F" else np.array(image).astype(np.uint8, copy=False)


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Read an array of numbers from a .npy file; its header is compared with the file's size first."""
    try:
        with _BoundedFile(path) as file:
            # a header may claim gigabytes, and they would be allocated
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
    """Encode uint8 [H, W] or [H, W, 3], or uint16 [H, W], as a PNG file."""
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
    """Encode an array of numbers as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def write_png(path: str | os.PathLike, pixels: np.ndarray | Tensor) -> None:
    """Write `png_bytes`; the file appears complete or not at all."""
    write_bytes(Path(path), png_bytes(pixels))


def write_npy(path: str | os.PathLike, array: np.ndarray | Tensor) -> None:
    """Write `npy_bytes`; the file appears complete or not at all."""
    write_bytes(Path(path), npy_bytes(array))


class _BoundedFile(io.BufferedReader):
    """Never asks for more than the file has: a chunk may claim gigabytes, which would be allocated."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self.length = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.length - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """An image whose pixels are not decoded yet. Whatever fails inside is a DataError that names the file."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_BoundedFile(path))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            _check_size(image, file.length)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Image.DecompressionBombError:
            raise DataError(f"{path}: too large, {_LIMIT}") from None
        except Image.UnidentifiedImageError:
            raise DataError(f"{path}: not an image, {_EXPECTED}") from None
        except Exception as error:  # Pillow's parsers let many exception types through on damaged headers
            raise DataError(f"{path}: cannot be read ({one_line(error)}), {_EXPECTED}") from error
        try:
            yield image
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except MemoryError as error:
            raise DataError(
                f"{path}: not enough memory to decode {image.width}x{image.height} pixels"
            ) from error
        except Exception as error:  # truncated data, wrong checksums: OSError, SyntaxError, ValueError...
            raise DataError(
                f"{path}: damaged or truncated ({one_line(error)}), expected a complete image"
            ) from error


def _check_size(image: Image.Image, length: int | None = None) -> None:
    """Raises unless the header's size is allowed and, in JPEG and PNG, fits the file's length in bytes."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise DataError(f"too large ({image.width}x{image.height}), {_LIMIT}")
    bits = 8 * len(image.getbands()) if len(image.getbands()) > 1 else 1  # of a pixel, at least
    if image.format in ("JPEG", "PNG") and length is not None and pixels * bits > 8 * MAX_RATIO * length:
        raise DataError(f"{image.width}x{image.height} pixels in {length} bytes, expected a complete image")


def _orientation(image: Image.Image) -> int:
    try:
        # the base class's: that of a PNG file decodes all pixels to look for tags after them
        tag = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # damaged metadata, which viewers ignore
        return 1
    return tag if tag in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # Pillow itself turns a TIFF here, and forgets its tag
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    """int64 [H, W] of grey values up to 65535."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise DataError(f"pixels range from {grey.min()} to {grey.max()}, expected 16-bit ones (0 to 65535)")
    return grey
