"""The predictor: maps in memory, files in their natural formats, and what it does about bad input."""

import errno
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.loading.transforms import IMAGENET_MEAN, IMAGENET_STD
from dmtl.errors import ConfigError, DataError
from dmtl.predict import Predictor, Summary

RNG = np.random.default_rng(0)


def save(path, height=20, width=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_predict_decodes_at_the_size_of_the_image(model):
    maps = Predictor(model, steps=3)(torch.zeros(3, 11, 17, dtype=torch.uint8))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "semseg": (11, 17),
        "sal": (11, 17),
        "normals": (3, 11, 17),
        "edge": (11, 17),
        "depth": (11, 17),
        "height": (11, 17),
    }
    assert model.calls == [((1, 3, 11, 17), tuple(model.tasks), 3)]
    black = torch.tensor([-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    assert maps["depth"].numpy() == pytest.approx(3 + float(black.mean()), abs=1e-5)
    assert (maps["semseg"] == 0).all() and maps["semseg"].dtype == torch.int64


def test_tensor_array_pillow_and_path_agree(model, tmp_path):
    path = save(tmp_path / "a.png")
    predictor = Predictor(model, tasks=["depth"])
    from_path, from_pillow = predictor(path)["depth"], predictor(Image.open(path))["depth"]
    array = np.asarray(Image.open(path))
    pixels = torch.from_numpy(array.copy()).permute(2, 0, 1)
    assert torch.equal(from_path, predictor(array)["depth"])
    assert torch.equal(from_path, from_pillow) and torch.equal(from_path, predictor(pixels)["depth"])


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (torch.zeros(3, 4, 4), TypeError, r"uint8 tensor \[3, H, W\], got torch.float32 \[3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ValueError, r"got torch.uint8 \[1, 3, 4, 4\]"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), ValueError, r"got torch.uint8 \[3, 0, 4\]"),
        (np.zeros((4, 4, 3)), TypeError, r"got float64 \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"got uint8 \[3, 4, 4\]"),
        ([[0]], TypeError, "uint8 array .H, W, 3. .*got list"),
    ],
)
def test_wrong_images(model, image, error, text):
    with pytest.raises(error, match=text):
        Predictor(model)(image)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tasks": ["dept"]}, "did you mean 'depth'"),
        ({"tasks": []}, "at least one"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": "auto", "batch_size": 2}, 'batch_size must be 1 with steps="auto"'),
        ({"device": "warp"}, "device must be .* got 'warp'"),
    ],
)
def test_wrong_options(model, options, text):
    with pytest.raises(ConfigError, match=text):
        Predictor(model, **options)


def test_every_format_reads_back(model, tmp_path):
    path, out = save(tmp_path / "in" / "a.png"), tmp_path / "out"
    predictor = Predictor(model)
    maps = predictor(path)
    summary = predictor.predict_files([path], out, npy=True)
    assert summary.ok and summary.written == ["a"] and "1 image predicted" in str(summary)
    index = json.loads((out / "maps.json").read_text())

    semseg = opened(out / "semseg" / "a.png")
    assert semseg.mode == "P" and np.array_equal(np.asarray(semseg), maps["semseg"].numpy())
    assert np.array_equal(np.asarray(semseg.convert("RGB")), model.tasks["semseg"].picture(maps["semseg"]))
    for task in ("sal", "edge"):
        image = opened(out / task / "a.png")
        assert (
            image.mode == "L"
            and np.abs(np.asarray(image) / 255 - maps[task].numpy()).max() <= 0.5 / 255 + 1e-6
        )
    depth = np.asarray(opened(out / "depth" / "a.png"))
    assert (
        depth.dtype == np.uint16
        and np.abs(depth * index["tasks"]["depth"]["scale"] - maps["depth"].numpy()).max() <= 5.1e-4
    )
    height, reading = opened(out / "height" / "a.png"), index["images"][0]["reading"]["height"]
    assert json.loads(height.text["dmtl"]) == reading
    error = np.abs(np.asarray(height) * reading["scale"] + reading["offset"] - maps["height"].numpy()).max()
    assert error <= 0.51 * reading["scale"] + 1e-5
    normals = np.moveaxis(np.asarray(opened(out / "normals" / "a.png")) / 127.5 - 1, -1, 0)
    assert np.abs(normals - maps["normals"].numpy()).max() <= 0.51 / 127.5
    stored = np.load(out / "normals" / "a.npy")
    assert stored.dtype == np.float16 and np.allclose(stored, maps["normals"].numpy(), atol=1e-3)

    assert index["images"][0] == {
        "input": str(path),
        "name": "a",
        "size": [20, 30],
        "reading": {"height": reading},
    }
    assert index["tasks"]["semseg"]["classes"] == ["dark", "middle", "bright"]
    for task in model.tasks:
        assert opened(out / "pictures" / task / "a.png").size == (30, 20)
    assert opened(out / "overview" / "a.png").mode == "RGB"


def test_depth_in_millimetres_and_a_constant_map_has_a_scale(model):
    from dmtl.predict.maps import encode_map

    png, reading = encode_map(model.tasks["depth"], torch.tensor([[0.0, 0.0009], [65.535, 9.0]]))
    assert np.asarray(opened_bytes(png)).tolist() == [[0, 1], [65535, 9000]] and reading == {}
    png, reading = encode_map(model.tasks["height"], torch.full((2, 2), 7.0))
    assert reading["offset"] == 7 and np.asarray(opened_bytes(png)).max() == 0


def test_more_than_256_classes_need_16_bits():
    from dmtl.predict.maps import encode_map
    from dmtl.tasks import make_task

    task = make_task("things", "classes", classes=300, ignore=1000)
    png, _ = encode_map(task, torch.tensor([[0, 299]]))
    assert np.asarray(opened_bytes(png)).tolist() == [[0, 299]] and "16-bit" in task.map_format()["png"]


def opened_bytes(png):
    import io

    return Image.open(io.BytesIO(png))


def test_a_summary_of_many():
    text = str(Summary(Path("out"), written=["a"] * 1234, rescaled=Counter(depth=1000)))
    assert text.startswith("1,234 images predicted into out")
    assert "depth: 1,000 maps did not fit into the usual scale; see `reading` in maps.json" in text


def test_pictures_can_be_left_out(model, tmp_path):
    Predictor(model, tasks=["sal"]).predict_files(
        [save(tmp_path / "a.png")], tmp_path / "out", pictures=False
    )
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"sal/a.png", "maps.json"}


def test_keeps_going_past_bad_files_and_lists_them(model, tmp_path):
    folder = tmp_path / "in"
    save(folder / "a.png"), save(folder / "sub" / "a.png", 7, 5)
    good = save(folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    summary = Predictor(model).predict_files(
        [folder, tmp_path / "empty", tmp_path / "none.png"], tmp_path / "out"
    )
    assert not summary.ok and summary.written == ["a", "sub/a"]
    reasons = {Path(f.path).name: f.reason for f in summary.failures}
    assert reasons["cut.png"].startswith("damaged or truncated") and reasons["text.jpg"].startswith(
        "not an image"
    )
    assert reasons["empty"].startswith("no images") and reasons["none.png"].startswith("does not exist")
    assert all(f"{f.path}: {f.reason}" in str(summary) for f in summary.failures) and "4 failed" in str(
        summary
    )
    assert opened(tmp_path / "out" / "semseg" / "sub" / "a.png").size == (5, 7)
    assert len(json.loads((tmp_path / "out" / "maps.json").read_text())["failures"]) == 4


def test_an_image_too_large_for_the_memory_is_that_images_failure(model, tmp_path, monkeypatch):
    maps = type(model).maps

    def limited(self, image, *args, **options):
        if image.shape[-1] > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return maps(self, image, *args, **options)

    monkeypatch.setattr(type(model), "maps", limited)
    save(tmp_path / "in" / "wide.png", 4, 101), save(tmp_path / "in" / "small.png")
    summary = Predictor(model).predict_files([tmp_path / "in"], tmp_path / "out")
    assert summary.written == ["small"] and summary.failures[0].reason == "not enough memory for 101x4 pixels"


def test_other_errors_of_the_model_are_not_hidden(model, tmp_path, monkeypatch):
    def broken(self, *args, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(model), "maps", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Predictor(model).predict_files([save(tmp_path / "a.png")], tmp_path / "out")


def test_output_that_is_not_finite_is_a_failure(model, tmp_path, monkeypatch):
    from types import SimpleNamespace

    def nan(self, image, tasks, **options):
        maps = {t: torch.zeros((1, *image.shape[2:]), dtype=torch.int64) for t in tasks}
        return SimpleNamespace(maps=maps, finite=dict.fromkeys(tasks, False))

    monkeypatch.setattr(type(model), "maps", nan)
    summary = Predictor(model, tasks=["semseg"]).predict_files([save(tmp_path / "a.png")], tmp_path / "out")
    assert summary.failures[0].reason == "semseg: the model's output is not finite"
    assert not (tmp_path / "out" / "semseg").exists()


def test_foreign_folders_are_not_overwritten(model, tmp_path):
    save(tmp_path / "data" / "images" / "a.png"), save(tmp_path / "data" / "semseg" / "a.png")
    before = (tmp_path / "data" / "semseg" / "a.png").read_bytes()
    with pytest.raises(DataError, match="holds other files, expected a new or empty folder"):
        Predictor(model).predict_files([tmp_path / "data" / "images"], tmp_path / "data")
    assert (tmp_path / "data" / "semseg" / "a.png").read_bytes() == before


def test_a_second_run_replaces_the_first(model, tmp_path):
    path = save(tmp_path / "a.png")
    predictor = Predictor(model, tasks=["semseg"])
    predictor.predict_files([path], tmp_path / "out")
    first = (tmp_path / "out" / "semseg" / "a.png").read_bytes()
    assert predictor.predict_files([path], tmp_path / "out").ok
    assert (tmp_path / "out" / "semseg" / "a.png").read_bytes() == first


def test_out_that_is_a_file_or_below_one(model, tmp_path):
    path = save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png: is a file, expected a folder"):
        Predictor(model).predict_files([path], path)
    with pytest.raises(OSError, match="cannot write .*a.png/out/maps.json"):
        Predictor(model).predict_files([path], path / "out")
    assert model.calls == []


def test_full_disk_stops_with_the_file_named_and_leaves_no_half_file(model, tmp_path, monkeypatch):
    written = Path.write_bytes

    def full(self, content):
        if "depth" in str(self) and ".b.png" in str(self):
            written(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, content)

    paths = [save(tmp_path / f"{n}.png") for n in "abcdefghijklmnop"]
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot write .*out/depth/b\.png: No space left on device"):
        Predictor(model).predict_files(paths, tmp_path / "out")
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert all(not p.name.startswith(".") for p in left)
    assert all(opened(p) for p in left if p.suffix == ".png")
    images = [entry["name"] for entry in json.loads((tmp_path / "out" / "maps.json").read_text())["images"]]
    assert "a" in images and "b" not in images and "p" not in images and images == sorted(images)
    assert all((tmp_path / "out" / "overview" / f"{name}.png").is_file() for name in images)


@pytest.mark.parametrize("name", ["pictures", "overview", "uncertainty"])
def test_task_called_like_an_output_folder(tmp_path, model, monkeypatch, name):
    from dmtl.tasks import make_task

    monkeypatch.setattr(model, "tasks", {name: make_task(name, "binary")})
    with pytest.raises(
        ConfigError, match=f"must not be called pictures, overview or uncertainty, got '{name}'"
    ):
        Predictor(model).predict_files([], tmp_path / "out")


def test_progress_is_reported_and_nothing_is_printed(model, tmp_path, capfd):
    paths = [save(tmp_path / "in" / f"{name}.png") for name in "ab"]
    seen = []
    Predictor(model, tasks=["sal"]).predict_files(
        paths, tmp_path / "out", progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 2), (2, 2)] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
def test_a_real_model_from_its_folder(tmp_path, diffusion, model):
    from dmtl.models import ModelConfig, create_model

    specs = [model.tasks[name].spec() for name in ("semseg", "normals", "depth")]
    config = ModelConfig(
        tasks=specs, width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1, diffusion=diffusion
    )
    create_model(config).save_pretrained(tmp_path / "model")
    predictor = Predictor(tmp_path / "model", steps=2)
    paths = [save(tmp_path / "in" / "a.png", 33, 47), save(tmp_path / "in" / "b.png", 64, 32)]
    assert predictor.predict_files([paths[0].parent], tmp_path / "out").written == ["a", "b"]
    assert opened(tmp_path / "out" / "normals" / "a.png").size == (47, 33)
    alone = Predictor(tmp_path / "model", steps=2)
    assert alone.predict_files([paths[1]], tmp_path / "alone").ok  # the maps of b do not depend on a
    for task in ("semseg", "normals", "depth"):
        files = [tmp_path / out / task / "b.png" for out in ("out", "alone")]
        assert files[0].read_bytes() == files[1].read_bytes()
