"""Open image files: the allowed decoders, the limits on size, and the error messages for damaged files."""

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
"""Maximum ratio of decoded bytes to the bytes of a JPEG or PNG file: deflate reaches 1032, JPEG about 1200. A
file with a higher ratio is incomplete; Pillow would invent the missing rows."""
# No other decoder of Pillow may run, except those of HEIC and AVIF for files that begin like one.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_LIMIT = f"expected at most {MAX_PIXELS // 1_000_000} million pixels"
_EXPECTED = f"expected an image ({', '.join(FORMATS)}, HEIC or AVIF)"


class BoundedFile(io.BufferedReader):
    """Read a file, or a member of a shard.

    A read never requests more bytes than the file has: a damaged chunk may claim gigabytes, which Python
    would allocate.
    """

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
    """Open an image without decoding its pixels.

    Any error inside the `with` block becomes a DataError that names the file.
    """
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
    """Raise DataError if the header claims too many pixels, or more than a file of `length` bytes can hold.

    The second check needs `length`, and is made for JPEG and PNG.
    """
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise DataError(f"too large ({image.width}x{image.height}), {_LIMIT}")
    bits = 8 * len(image.getbands()) if len(image.getbands()) > 1 else 1  # bits of a pixel, at least
    if image.format in ("JPEG", "PNG") and length is not None and pixels * bits > 8 * MAX_RATIO * length:
        raise DataError(
            f"{image.width}x{image.height} pixels in only {length} bytes, expected a complete image"
        )


def _formats(head: bytes) -> tuple[str, ...]:
    """Return the decoders for a file that begins with `head`.

    Raises:
        DataError: the decoder is not installed; the message says what to install.
    """
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
    """Describe a file that begins with `head` and that no decoder accepts."""
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
