"""Valid image files and pictures of labels in every format."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.data.files import chunk, exif, png, tiff

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 15, 3), np.uint8)
IDS = RNG.integers(0, 3, (12, 15), np.uint8)


def image(mode: str, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, format, **options)
    return stream.getvalue()


def deep_grey(values: np.ndarray = PIXELS[:, :, 0]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint16) * 257).save(stream, "PNG")
    return stream.getvalue()


def pngs(*modes: str) -> dict[str, bytes]:
    made = {f"{mode}.png": image(mode) for mode in modes}
    return made | {
        "turned.png": image("RGB", exif=turned(), dpi=(72, 72)),
        "stored.png": image("P", transparency=1, compress_level=0),
    }


def webps() -> dict[str, bytes]:
    return {
        "plain.webp": image("RGB", "WEBP", exif=turned()),
        "alpha.webp": image("RGBA", "WEBP", lossless=True),
        "moving.webp": image("RGB", "WEBP", save_all=True, append_images=[Image.new("RGB", (15, 12))]),
    }


def tiffs() -> dict[str, bytes]:
    return {
        "plain.tif": image("RGB", "TIFF", exif=turned()),
        "cmyk.tif": image("CMYK", "TIFF", compression="tiff_lzw"),
        "strips.tif": image("L", "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": image("RGB", "TIFF", compression="jpeg"),
        "alpha.tif": image("RGBA", "TIFF", compression="packbits"),
        "palette.tif": image("P", "TIFF"),
        "fax.tif": image("1", "TIFF", compression="group4"),
        "deep.tif": tiff(PIXELS[:, :, 0].astype(np.uint16) * 257, 16, ">"),
        "colours.tif": tiff(PIXELS.astype(np.uint16) * 257, 16, orientation=5),
    }


def bitmaps() -> dict[str, bytes]:
    return {
        "plain.bmp": image("RGB", "BMP"),
        "palette.bmp": image("P", "BMP"),
        "bits.bmp": image("1", "BMP"),
        "alpha.bmp": image("RGBA", "BMP"),
        "plain.ppm": image("RGB", "PPM"),
        "grey.pgm": image("L", "PPM"),
        "bits.pbm": image("1", "PPM"),
    }


def avifs() -> dict[str, bytes]:
    return {
        "plain.avif": image("RGB", "AVIF", exif=turned()),
        "alpha.avif": image("RGBA", "AVIF", quality=100, subsampling="4:4:4"),
    }


def heics() -> dict[str, bytes]:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return {"plain.heic": image("RGB", "HEIF"), "alpha.heic": image("RGBA", "HEIF", quality=-1)}


def turned() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def label_pngs() -> dict[str, bytes]:
    scale = chunk(b"tEXt", b'dmtl\0{"offset": -1.5, "scale": 0.001}')
    return pngs("RGB", "L", "P", "1") | {
        "deep.png": deep_grey(),
        "own.png": png(PIXELS[:, :, 0].astype(np.uint16) * 257, 16, scale),
        "bits.png": png(PIXELS[:, :, 0] >> 4, 4, after=chunk(b"eXIf", exif(8))),
    }


def label_tiffs() -> dict[str, bytes]:
    grey = PIXELS[:, :, 0]
    return {
        "ids.tif": image("L", "TIFF", compression="tiff_lzw", exif=turned()),
        "palette.tif": image("P", "TIFF", compression="tiff_adobe_deflate"),
        "bits.tif": tiff(grey >> 4, 4),
        "codes.tif": tiff(grey.astype(np.uint16) * 257, 16, ">", orientation=3),
        "signed.tif": tiff(grey.astype(np.int16) - 100, 16),
        "whole.tif": tiff(grey.astype(np.int32) - 100, 32, ">"),
        "floats.tif": tiff(grey.astype(np.float32) / 7, 32),
        "vectors.tif": image("RGB", "TIFF", compression="packbits"),
    }


def jpegs() -> dict[str, bytes]:
    return {
        "plain.jpg": image("RGB", "JPEG"),
        "progressive.jpg": image("RGB", "JPEG", progressive=True, exif=turned()),
        "grey.jpg": image("L", "JPEG", restart_marker_blocks=1),
        "cmyk.jpg": image("CMYK", "JPEG", subsampling=2),
    }
