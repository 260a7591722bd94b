"""Any picture a person may have, as the uint8 RGB tensor that a model is fed from.

Data sets are strict about their files (`dmtl.data.folder.images`); this reader takes whatever can sensibly be
shown in RGB.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmtl.errors import DataError, one_line

MAX_PIXELS = 64_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # no other decoder of Pillow is reached


def read_image(path: str | os.PathLike) -> Tensor:
    """uint8 [3, H, W], upright (EXIF orientation applied). The first frame, where a file has several.

    Raises DataError, naming the file, when it is missing, no image, damaged, truncated, or of more than 64
    million pixels (seen in the header, before a pixel is decoded).
    """
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder, expected an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist, expected an image file") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: not an image, expected one of {', '.join(SUFFIXES)}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: too large, {_LIMIT}") from None
    except Exception as error:  # a damaged header lets many exception types out of Pillow's parsers
        raise DataError(f"{path}: cannot be read ({one_line(error)}), expected an image file") from error
    with image:
        try:
            return to_rgb(image)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except MemoryError:
            raise DataError(
                f"{path}: not enough memory to decode {image.width}x{image.height} pixels"
            ) from None
        except Exception as error:  # truncated data, wrong checksums, unsupported compression
            raise DataError(
                f"{path}: damaged or truncated ({one_line(error)}), expected a complete image"
            ) from error


def to_rgb(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as uint8 [3, H, W], upright.

    Grey is repeated, 16-bit grey is scaled so that 65535 is white, CMYK and YCbCr are converted, and what is
    transparent shows white behind it. Raises DataError for more than 64 million pixels and for floating-point
    pixels, whose white is unknown.
    """
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"too large ({image.width}x{image.height} pixels), {_LIMIT}")
    if image.mode == "F":
        raise DataError("pixels are floating-point numbers, expected 8- or 16-bit ones")
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(
                f"pixels range from {grey.min()} to {grey.max()}, expected 16-bit ones (0 to 65535)"
            )
        pixels = np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


_LIMIT = f"expected at most {MAX_PIXELS // 1_000_000} million pixels"
