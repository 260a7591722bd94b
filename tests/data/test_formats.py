"""Files of every bit depth and format: labels are the values that are stored, images what viewers show."""

import builtins
import io

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.data.images import appearance, image_size, read_codes, read_image, read_label_image
from dmtl.errors import DataError
from dmtl.predict.maps import encode_map
from dmtl.tasks import make_task
from tests.data.conftest import arrays
from tests.data.files import chunk, exif, png, tiff

GREY = np.arange(77, dtype=np.uint16).reshape(7, 11)


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".big.tif"])
def test_grey_of_every_depth(tmp_path, bits, suffix):
    most = (1 << bits) - 1
    values = GREY & most
    content = png(values, bits) if suffix == ".png" else tiff(values, bits, ">" if "big" in suffix else "<")
    path = written(tmp_path / f"a{suffix}", content)
    codes = read_codes(path)
    assert np.array_equal(codes.values, values) and codes.most == most and not codes.numbers
    assert np.abs(read_image(path)[0].numpy() - values * 255.0 / most).max() <= 0.5


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_of_few_bits_hold_indices(tmp_path, bits):
    image = Image.fromarray(np.uint8(GREY % (1 << bits)), "L").convert("P")
    image.putpalette(list(range(3 * (1 << bits))))
    image.save(tmp_path / "a.png", bits=bits)
    codes = read_codes(tmp_path / "a.png")
    assert np.array_equal(codes.values, GREY % (1 << bits)) and codes.most is None


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.int8, 8), (np.int16, 16), (np.int32, 32), (np.uint32, 32), (np.float32, 32)]
)
@pytest.mark.parametrize("order", "<>")
def test_numbers_in_tiff_files(tmp_path, dtype, bits, order):
    """With a sign, of 32 bits, or floats: the values meant, as in a .npy."""
    if (dtype, order) == (np.uint32, ">"):
        pytest.skip("Pillow cannot read it")
    values = GREY.astype(dtype) if dtype == np.uint32 else GREY.astype(dtype) - dtype(30)
    codes = read_codes(written(tmp_path / "a.tif", tiff(values, bits, order)))
    assert np.array_equal(codes.values, values) and codes.numbers and codes.most is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(GREY % 2, 1, photometric=0), "a TIFF in which 0 is white"),
        (tiff(GREY % 16, 4, photometric=0), "a TIFF in which 0 is white"),
        (tiff(GREY, 8, photometric=0), "a TIFF in which 0 is white"),
        (tiff(GREY.astype(np.uint32) << 25, 32), "whole numbers of 32 bits above 2147483647"),
        (tiff(GREY.astype(np.float64), 64), "a TIFF of unsupported pixels"),
        (png(np.stack([GREY * 100] * 3, 2), 16), "RGB of 16 bits, expected RGB of 8 bits or a .npy"),
        (png(np.stack([GREY] * 4, 2)), "pixels of mode RGBA"),
        (png(GREY, 16, chunk(b"tEXt", b"dmtl\0{}")), "text chunk \"dmtl\" is '{}', expected"),
        (png(GREY, 16, chunk(b"tEXt", b'dmtl\0{"scale": NaN, "offset": 0}')), 'text chunk "dmtl" is'),
    ],
)
def test_labels_that_could_mean_two_things(tmp_path, content, message):
    with pytest.raises(DataError, match=f"a.png: {message}"):
        read_label_image(written(tmp_path / "a.png", content))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP"])
def test_labels_in_formats_of_images(tmp_path, format):
    Image.fromarray(np.uint8(GREY)).save(tmp_path / "a.png", format)
    with pytest.raises(DataError, match=f"a.png: a {format} file, expected PNG, TIFF or .npy"):
        read_label_image(tmp_path / "a.png")


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_white_as_0_is_white_in_images(tmp_path, bits):
    image = read_image(written(tmp_path / "a.tif", tiff(GREY * 0, bits, photometric=0)))
    assert (image == 255).all()


def test_deep_grey_with_few_bits_or_a_transparent_shade(tmp_path):
    grey = np.array([[0, 40_000, 65_535]], np.uint16)
    path = written(tmp_path / "a.png", png(grey, 16, chunk(b"tRNS", (40_000).to_bytes(2, "big"))))
    assert read_image(path)[0].tolist() == [[0, 255, 255]] and appearance(path).transparent


@pytest.mark.parametrize("tag", [2, 3, 6, 8])
def test_tags_after_the_pixels(tmp_path, tag):
    """As ExifTool adds them to a PNG."""
    early = written(tmp_path / "a.png", png(GREY, before=chunk(b"eXIf", exif(tag))))
    late = written(tmp_path / "b.png", png(GREY, after=chunk(b"eXIf", exif(tag))))
    assert appearance(early).orientation == appearance(late).orientation == tag
    assert image_size(early) == image_size(late) == ((11, 7) if tag > 4 else (7, 11))
    assert torch.equal(read_image(early), read_image(late))


@pytest.mark.parametrize(("suffix", "format"), [(".avif", "AVIF"), (".heic", "HEIF"), (".jpg", "HEIF")])
def test_photos_of_telephones(folder, suffix, format):
    """In a data set as at prediction, turned; also under a wrong suffix."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    tags = Image.Exif()
    tags[0x0112] = 6
    pixels = np.zeros((32, 24, 3), np.uint8)
    pixels[:, :12] = 250
    (folder / "images/a.png").unlink()
    path = folder / f"images/a{suffix}"
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, format, exif=tags.tobytes())
    image = Folder(folder, "val").read(0, []).image
    assert torch.equal(image, read_image(path)) and image.shape == (3, 32, 24)
    assert image[:, :, :11].min() > 200 and image[:, :, 13:].max() < 50


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevc"])
def test_what_heic_needs_is_named(tmp_path, monkeypatch, brand):
    from dmtl.data import opening

    load = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pillow_heif":
            raise ImportError("No module named 'pillow_heif'")
        return load(name, *arguments, **options)

    opening._prepare_heic.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    path = written(tmp_path / "a.heic", b"\0\0\0\x18ftyp" + brand + bytes(200))
    with pytest.raises(DataError, match=r"a.heic: a HEIC image, which needs pillow-heif.*'dmtl\[heic\]'"):
        read_image(path)


@pytest.mark.parametrize("brand", [b"avif", b"avis"])
def test_what_avif_needs_is_named(tmp_path, monkeypatch, brand):
    from dmtl.data import opening

    monkeypatch.setattr(opening.features, "check", lambda name: False)
    path = written(tmp_path / "a.avif", b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1avif" + bytes(99))
    with pytest.raises(DataError, match=r"a.avif: an AVIF image, which this Pillow cannot.*'dmtl\[heic\]'"):
        read_image(path)


@pytest.mark.parametrize("task", ["depth", "height"])
def test_a_prediction_as_a_label(folder, task):
    """Its own scale and offset count, not the `scale` of dataset.yaml."""
    metres = torch.linspace(-3, 400, 24 * 32).reshape(24, 32)
    (folder / "depth/b.png").write_bytes(encode_map(make_task(task, "scalar"), metres)[0])
    label = Folder(folder, "train").read(1, ["depth"]).labels["depth"]
    assert (label[0] - metres).abs().max() < 0.01


def test_labels_of_few_bits_in_a_folder(folder):
    """An edge of 1 bit and classes of 2 bits are what they were."""
    data = arrays(0)
    semseg = data["semseg"] % 3
    (folder / "edge/a.png").write_bytes(png(data["edge"], 1))
    (folder / "semseg/a.png").write_bytes(png(semseg, 2))
    labels = Folder(folder, "val").read(0, ["edge", "semseg"]).labels
    assert np.array_equal(labels["edge"][0], data["edge"]) and np.array_equal(labels["semseg"][0], semseg)


def test_nothing_else_of_pillow_is_reached(tmp_path):
    for format in ("GIF", "ICNS", "TGA"):
        stream = io.BytesIO()
        Image.fromarray(np.uint8(GREY)).convert("RGB").save(stream, format)
        with pytest.raises(DataError, match="a.png: not an image"):
            read_image(written(tmp_path / "a.png", stream.getvalue()))
