"""Open image files: which decoders may see them, how large they may be, and what is said of damaged ones."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from PIL import Image, features

from dmtl.data.shards.member import AnyFile, Member
from dmtl.errors import DataError, one_line

MAX_PIXELS = 64_000_000
MAX_RATIO = 2000
"""Bytes of pixels to one of a JPEG or PNG file: deflate reaches 1032, JPEG about 1200. Pillow would make up
missing rows."""
# No other decoder of Pillow is ever reached, but that of HEIC or AVIF for a file that begins as one.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_LIMIT = f"expected at most {MAX_PIXELS // 1_000_000} million pixels"
_EXPECTED = f"expected an image ({', '.join(FORMATS)}, HEIC or AVIF)"


class BoundedFile(io.BufferedReader):
    """A file, or a member of a shard, for reading.

    It never asks for more than the file has: a chunk may claim gigabytes, which would be allocated."""

    def __init__(self, path: AnyFile):
        raw = io.BytesIO(path.content()) if isinstance(path, Member) else io.FileIO(path)
        super().__init__(raw)
        self.length = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.length - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def opened(path: AnyFile) -> Iterator[Image.Image]:
    """An image whose pixels are not decoded yet. Whatever fails inside is a DataError that names the file."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(BoundedFile(path))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
                formats = _formats(head := file.read(64))
                file.seek(0)
                image = stack.enter_context(Image.open(file, formats=formats))
            check_size(image, file.length)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Image.DecompressionBombError:
            raise DataError(f"{path}: too large, {_LIMIT}") from None
        except Image.UnidentifiedImageError:
            raise DataError(f"{path}: {_unread(head, formats)}, {_EXPECTED}") from None
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


def check_size(image: Image.Image, length: int | None = None) -> None:
    """Raises unless the header's size is allowed and, in JPEG and PNG, fits the file's length in bytes."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise DataError(f"too large ({image.width}x{image.height}), {_LIMIT}")
    bits = 8 * len(image.getbands()) if len(image.getbands()) > 1 else 1  # of a pixel, at least
    if image.format in ("JPEG", "PNG") and length is not None and pixels * bits > 8 * MAX_RATIO * length:
        raise DataError(f"{image.width}x{image.height} pixels in {length} bytes, expected a complete image")


def _formats(head: bytes) -> tuple[str, ...]:
    """The decoders for a file that begins so; DataError that says what to install for them."""
    if head[4:8] != b"ftyp":
        return FORMATS
    box = head[: int.from_bytes(head[:4], "big")]
    brands = {box[at : at + 4] for at in range(8, len(box), 4)}
    if brands & {b"avif", b"avis"}:
        if not features.check("avif"):
            needed = "expected Pillow 11.3 or newer: pip install 'dmtl[heic]'"
            raise DataError(f"an AVIF image, which this Pillow cannot read, {needed}")
        return ("AVIF",)
    if not brands & _HEIC:
        return FORMATS
    _prepare_heic()
    return ("HEIF",)


def _unread(head: bytes, formats: tuple[str, ...]) -> str:
    """What a file is that begins so and that no decoder takes."""
    if formats != FORMATS:
        return f"a damaged {formats[0].replace('HEIF', 'HEIC')} image"
    return "a TIFF of unsupported pixels" if head[:4] in (b"II*\0", b"MM\0*") else "not an image"


@cache
def _prepare_heic() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(
            f"a HEIC image, which needs pillow-heif ({one_line(error)}): pip install 'dmtl[heic]'"
        ) from None
    pillow_heif.register_heif_opener()
