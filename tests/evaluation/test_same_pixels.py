"""Training, evaluation and prediction see the same pixels, whatever the files, and agree in metrics."""

import io

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.data.loading.transforms import normalise
from dmtl.engine.engine import Engine
from dmtl.evaluation.protocol import Evaluation, Protocol
from dmtl.evaluation.saved_maps import SavedMaps
from dmtl.models import ModelConfig, create_model
from dmtl.predict import Predictor
from tests.data.files import ORIENTATION, chunk, exif, png, tiff
from tests.data.test_images import TURNS

UNTURN = {tag: TURNS[{6: 8, 8: 6}.get(tag, tag)] for tag in TURNS}
TASKS = {
    "semseg": {"kind": "classes", "classes": ["sky", "ground"]},
    "cracks": {"kind": "binary"},
    "normals": {"kind": "unit_vector"},
    "height": {"kind": "scalar", "scale": 0.25},
    "depth": {"kind": "scalar", "distance": True, "scale": 0.25},
}
COUNT = 12


def tagged(tag):
    tags = Image.Exif()
    tags[ORIENTATION] = tag
    return tags


def encoded(image, format, tag, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options, **({"exif": tagged(tag)} if tag > 1 else {}))
    return stream.getvalue()


def spread(grey, bits):
    """Codes of fewer or more bits as 8-bit shades, to the nearest."""
    return np.uint8(np.rint(grey * 255.0 / ((1 << bits) - 1)))


def on_white(rgba):
    alpha = rgba[..., 3:].astype(float) / 255
    return np.uint8(np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)))


def grey_file(rng, shape, tag):
    """Grey of 1 to 16 bits in a PNG or TIFF of either byte order, also with white as 0."""
    bits = int(rng.choice([1, 2, 4, 8, 16]))
    grey = rng.integers(0, 1 << bits, shape, np.uint16)
    stored, shown = UNTURN[tag](grey), spread(grey, bits)
    if rng.random() < 0.5:
        tags = chunk(b"eXIf", exif(tag))
        late = rng.random() < 0.5
        content = png(stored, bits, b"" if late else tags, tags if late else b"")
        return ".png", content, np.stack([shown] * 3, -1)
    white = int(rng.integers(2)) if bits < 16 else 1
    order = "<" if white == 0 else rng.choice(["<", ">"])
    content = tiff(stored, bits, str(order), photometric=white, orientation=tag)
    shown = shown if white else 255 - shown
    return ".tif", content, np.stack([shown] * 3, -1)


def colour_file(rng, shape, tag):
    """Colours, with alpha or without, in formats that lose nothing."""
    rgba = rng.integers(0, 256, (*shape, 4), np.uint8)
    stored = np.ascontiguousarray(UNTURN[tag](rgba))
    kind = rng.choice(["png", "png+", "webp", "webp+", "tif", "tif+", "deep", "bmp", "ppm", "palette"])
    if kind == "palette":
        indices = rng.integers(0, 7, shape)
        image = Image.fromarray(np.uint8(UNTURN[tag](indices)), "L").convert("P")
        image.putpalette(rgba[0, 0, :3].tobytes() * 7)
        transparent = {"transparency": 3} if rng.random() < 0.5 else {}
        shown = np.broadcast_to(rgba[0, 0, :3], (*shape, 3)).copy()
        shown[indices == 3] = 255 if transparent else shown[0, 0]
        return ".png", encoded(image, "PNG", tag, **transparent), shown
    if kind == "deep":
        deep = stored[..., :3].astype(np.uint16) * 257
        return ".tiff", tiff(deep, 16, str(rng.choice(["<", ">"])), orientation=tag), rgba[..., :3]
    if kind in ("bmp", "ppm"):  # without tags
        return f".{kind}", encoded(Image.fromarray(rgba[..., :3].copy()), kind.upper(), 1), rgba[..., :3]
    alpha = kind.endswith("+")
    image = Image.fromarray(stored if alpha else np.ascontiguousarray(stored[..., :3]))
    format = {"png": "PNG", "webp": "WEBP", "tif": "TIFF"}[kind.strip("+")]
    options = {"WEBP": {"lossless": True, "exact": True}, "TIFF": {"compression": "tiff_lzw"}}.get(format, {})
    shown = on_white(rgba) if alpha else rgba[..., :3]
    return f".{kind.strip('+')}", encoded(image, format, tag, **options), shown


def photo_file(rng, shape, tag):
    """A format that loses something, as Pillow alone decodes it."""
    format, suffix, mode = [("JPEG", ".jpg", "RGB"), ("JPEG", ".jpeg", "L"), ("JPEG", ".JPG", "CMYK"),
                            ("AVIF", ".avif", "RGB")][rng.integers(4)]  # fmt: skip
    photo = Image.fromarray(rng.integers(0, 256, UNTURN[tag](np.zeros((*shape, 3))).shape, np.uint8))
    content = encoded(photo.convert(mode), format, tag)
    with Image.open(io.BytesIO(content)) as image:
        return suffix, content, TURNS[tag](np.asarray(image.convert("RGB")))


def label_file(rng, values, bits):
    """Values that fit into `bits` in a file of a random kind and orientation."""
    tag = int(rng.integers(1, 9))
    stored = np.ascontiguousarray(UNTURN[tag](values)).astype(np.uint8)
    kind = rng.choice(["png", "tif", "signed", "palette", "npy"])
    if kind == "npy":
        return ".npy", npy(values)
    if kind == "signed":
        return ".tiff", tiff(stored.astype(np.int32), int(rng.choice([16, 32])), orientation=tag)
    if kind == "palette":
        image = Image.fromarray(stored.astype(np.uint8), "L").convert("P")
        return ".png", encoded(image, "PNG", tag)
    bits = int(rng.choice([b for b in (1, 2, 4, 8) if b >= bits]))
    if kind == "tif":
        return ".tif", tiff(stored, bits, str(rng.choice(["<", ">"])), orientation=tag)
    return ".png", png(stored, bits, after=chunk(b"eXIf", exif(tag)))


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def labels(rng, shape):
    """task -> (suffix, content, label [K, H, W])."""
    ids = rng.integers(0, 2, shape)
    yes = rng.integers(0, 2, shape)
    vector = rng.normal(size=(*shape, 3))
    vector /= np.linalg.norm(vector, axis=2, keepdims=True)
    made = {"semseg": (*label_file(rng, ids, 1), ids[None]), "cracks": (*label_file(rng, yes, 1), yes[None])}
    codes = np.uint8(np.rint((vector + 1) * 127.5))
    decoded = codes.astype(np.float32) * (2 / 255) - 1
    decoded /= np.linalg.norm(decoded, axis=2, keepdims=True)
    files = ((".png", png(codes), decoded), (".tif", tiff(codes), decoded), (".npy", npy(vector), vector))
    suffix, content, expected = files[rng.integers(3)]
    made["normals"] = suffix, content, np.moveaxis(expected, 2, 0)
    for task in ("height", "depth"):
        steps = rng.integers(1, 16, shape, np.uint16)
        bits = int(rng.choice([4, 8, 16]))
        files = ((".png", png(steps, bits)), (".tif", tiff(steps, bits, ">")))
        floats = ((".npy", npy(steps / 4)), (".tif", tiff(np.float32(steps / 4), 32, ">")))
        # numbers have no scale, codes that of dataset.yaml
        made[task] = (*(files if task == "height" else floats)[rng.integers(2)], steps[None] / 4)
    return made


def write_random(root, seed):
    """A folder of random files, and what images and labels are expected."""
    rng, expected = np.random.default_rng(seed), []
    for name in ("images", "splits", *TASKS):
        (root / name).mkdir(parents=True)
    for number in range(COUNT):
        shape, tag = tuple(rng.integers(5, 33, 2)), int(rng.integers(1, 9))
        file = (grey_file, colour_file, photo_file)[number % 3]
        suffix, content, shown = file(rng, shape, tag)
        assert shown.shape == (*shape, 3)
        (root / "images" / f"{number:02}{suffix}").write_bytes(content)
        found = labels(rng, shape)
        for task, (end, label, _) in found.items():
            (root / task / f"{number:02}{end}").write_bytes(label)
        expected.append((torch.from_numpy(shown.copy()).permute(2, 0, 1), found))
    (root / "splits" / "val.txt").write_text("".join(f"{n:02}\n" for n in range(COUNT)))
    tasks = {
        name: {k: v for k, v in spec.items() if (name, k) != ("depth", "scale")}
        for name, spec in TASKS.items()
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    return expected


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    specs = [
        {"name": name, **{k: v for k, v in spec.items() if k != "scale"}} for name, spec in TASKS.items()
    ]
    options = dict(width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1, diffusion="none")
    return create_model(ModelConfig(tasks=specs, **options))


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))]
)
def test_every_side_sees_the_same_pixels(tmp_path, monkeypatch, model, seed):
    expected = write_random(tmp_path / "data", seed)
    data = Folder(tmp_path / "data", "val")
    for index, (image, found) in enumerate(expected):
        sample, where = data.read(index), str(data.image_file(index))
        assert within(sample.image, image), where
        for task, (_, _, label) in found.items():
            file = str(data.label_file(index, task))
            np.testing.assert_allclose(sample.labels[task].numpy(), label, atol=1e-5, err_msg=file)

    seen, evaluation = [], Evaluation(data, list(TASKS), Protocol(), batch_size=1)
    for batch in evaluation.loader:
        seen += [(batch.index[row], batch.image[row][..., *batch.unpadded(row)]) for row in range(len(batch))]
    for index, image in seen:
        assert torch.equal(image, normalise(data.read(index).image)), data.ids[index]

    predictor, fed = Predictor(model), []
    maps = predictor.engine.maps
    monkeypatch.setattr(
        predictor.engine, "maps", lambda image, *rest, **more: fed.append(image) or maps(image, *rest, **more)
    )
    summary = predictor.predict_files([tmp_path / "data" / "images"], tmp_path / "out", pictures=False)
    assert summary.ok and summary.written == data.ids and not summary.left_out
    for index, image in enumerate(fed):
        assert torch.equal(image[0], normalise(data.read(index).image)), data.ids[index]

    direct = evaluation.score(Engine(model))
    stored = evaluation.score(SavedMaps(tmp_path / "out", evaluation.tasks, evaluation.needed))
    for task, rounding in {"semseg": 0, "cracks": 0.8, "normals": 0.5, "height": 2e-3, "depth": 2e-3}.items():
        assert stored[task] == pytest.approx(direct[task], abs=rounding, rel=1e-3, nan_ok=True), task


def within(found, expected):
    """Equal, but for the rounding of transparency."""
    return found.shape == expected.shape and (found.int() - expected.int()).abs().max() <= 1
