"""Every kind of image file becomes an upright uint8 RGB tensor, or an error that names the file."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.data.images import image_size, read_image, read_label_image, to_rgb
from dmtl.errors import DataError
from tests.data.conftest import HEIGHT, TASKS, WIDTH, arrays, describe


def ramp(height=6, width=9):
    return np.stack(
        np.broadcast_arrays(np.arange(width) * 20, np.arange(height)[:, None] * 30, 100), -1
    ).astype(np.uint8)


def test_rgb_is_read_as_it_is(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8 and image.shape == (3, 6, 9) and image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), ramp())


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".ppm", ".webp"])
def test_other_formats(tmp_path, suffix):
    Image.fromarray(ramp()).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(tmp_path / f"a{suffix}").permute(1, 2, 0).numpy(), ramp())


def test_grey_is_repeated():
    grey = ramp()[..., 0]
    assert np.array_equal(to_rgb(Image.fromarray(grey)).numpy(), np.stack([grey] * 3))


def test_16_bit_grey_spans_black_to_white(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0, 1, 128, 255]]


def test_32_bit_grey_beyond_16_bits_is_refused():
    with pytest.raises(DataError, match="0 to 70000, expected 16-bit"):
        to_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: pixels of mode F"):
        read_image(tmp_path / "a.tif")


def test_transparency_shows_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, (0, 128, 255)
    image = to_rgb(Image.fromarray(rgba))
    assert image[:, 0, 0].tolist() == [255, 255, 255] and image[:, 0, 2].tolist() == [200, 0, 0]
    assert 100 < image[1, 0, 1] < 155


def test_transparent_palette_and_cmyk():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.info["transparency"] = 0
    assert to_rgb(palette)[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]
    red = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert to_rgb(red).flatten().tolist() == [255, 0, 0]


TURNS = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("tag", TURNS)
def test_orientation_is_followed(tmp_path, tag, suffix):
    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(ramp(8, 16)).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    upright = TURNS[tag](ramp(8, 16))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), upright)
    if suffix != ".webp":  # labels are PNG or TIFF
        assert np.array_equal(read_label_image(path), upright)
    assert image_size(path) == upright.shape[:2]
    if suffix != ".tif":  # Pillow always turns it
        assert np.array_equal(read_image(path, upright=False).permute(1, 2, 0).numpy(), ramp(8, 16))
        assert image_size(path, upright=False) == (8, 16)


def test_damaged_tags_are_ignored(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), ramp())


def stored_as(kind: str):
    """(pixels or image, format, options) of a photo of the data set's size."""
    rgb, grey = arrays(0)["images"], arrays(0)["depth"]
    alpha = np.dstack([rgb, grey.astype(np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 3
    return {
        "RGB": (Image.fromarray(rgb), "TIFF", {}),
        "16-bit": (Image.fromarray(grey * 65), "PNG", {}),
        "alpha": (Image.fromarray(alpha), "PNG", {}),
        "grey and alpha": (Image.fromarray(alpha).convert("LA"), "WEBP", {"lossless": True}),
        "palette": (Image.fromarray(rgb).quantize(7), "PNG", {"transparency": 3}),
        "CMYK": (Image.fromarray(rgb).convert("CMYK"), "JPEG", {}),
        "turned": (Image.fromarray(rgb), "JPEG", {"exif": turned}),
        "1 bit": (Image.fromarray(rgb).convert("1"), "BMP", {}),
        "grey": (Image.fromarray(rgb).convert("L"), "PPM", {}),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["RGB", "16-bit", "alpha", "grey and alpha", "palette", "CMYK", "turned", "1 bit", "grey"]
)
def test_a_data_set_shows_what_prediction_shows(folder, kind):
    image, format, options = stored_as(kind)
    (folder / "images/a.png").unlink()
    path = folder / f"images/a.{format.lower()}"
    image.save(path, format, **options)
    path = path.rename(path.with_suffix({"TIFF": ".tiff", "JPEG": ".jpeg"}.get(format, path.suffix)))
    assert torch.equal(Folder(folder, "val").read(0).image, read_image(path))


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_labels_of_an_image_that_is_turned(folder, tag):
    """Refused where they have the size of the stored pixels; read where they fit what is shown."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(arrays(0)["images"]).save(folder / "images/a.png", exif=exif)
    message = f"label of {WIDTH}x{HEIGHT} pixels, expected {HEIGHT}x{WIDTH} like images/a.png as it is shown"
    with pytest.raises(DataError, match=f"{message}: its orientation tag {tag} .* remove the tag"):
        Folder(folder, "val").read(0, ["edge"])
    Image.fromarray(np.ascontiguousarray(TURNS[tag](arrays(0)["edge"]))).save(folder / "edge/a.png")
    sample = Folder(folder, "val").read(0, ["edge"])
    assert sample.labels["edge"].shape[1:] == sample.image.shape[1:] == (WIDTH, HEIGHT)


def test_labels_in_tiff_files(folder):
    """Codes as in PNG, numbers as in .npy."""
    expected = Folder(folder, "train").read(2).labels
    for task in ("semseg", "edge", "normals", "depth"):
        path = folder / task / "c/d.png"
        Image.open(path).save(path.with_suffix(".tif"), compression="tiff_lzw")
        path.unlink()
    found = Folder(folder, "train").read(2).labels
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    metres = np.where(expected["depth"] < 0, np.nan, expected["depth"])[0].astype(np.float32)
    Image.fromarray(metres).save(folder / "depth/c/d.tif")
    describe(folder, tasks={**TASKS, "depth": {"kind": "scalar"}})
    assert torch.equal(Folder(folder, "train").read(2, ["depth"]).labels["depth"], expected["depth"])


def test_missing_folder_and_text(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"a\.jpg: not an image, expected"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: cannot be read \(No such file"):
        read_image(tmp_path / "b.jpg")
    with pytest.raises(DataError, match="cannot be read \\(Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(stream, {".jpg": "JPEG", ".png": "PNG"}[suffix])
    content = stream.getvalue()
    (tmp_path / f"a{suffix}").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=f"a{suffix}: "):
        read_image(tmp_path / f"a{suffix}")


def huge_png(width, height):
    """A few bytes that promise width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8001, 12_000, 100_000])
def test_more_than_64_megapixels_are_refused_before_decoding(tmp_path, side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(huge_png(side, side))
    with pytest.raises(DataError, match="too large.*64 million"):
        read_image(tmp_path / "a.png")
