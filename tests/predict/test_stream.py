"""Many files at once: order, batches, videos, interruptions, errors in threads, nothing left running."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.errors import ConfigError
from dmtl.predict import Predictor, outputs, stream
from dmtl.predict.video import VideoReader

from .test_predictor import opened, save
from .test_video import film


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("dmtl-")] == []


def index(tmp_path):
    return json.loads((tmp_path / "out" / "maps.json").read_text())


def test_entries_keep_the_order_of_the_inputs(model, tmp_path, monkeypatch):
    """However long each takes to read and to write; failures too."""
    names = [f"{i:02}" for i in range(24)]
    for i, name in enumerate(names):
        save(tmp_path / "in" / f"{name}.png", 8, 8)
        if i % 5 == 0:
            (tmp_path / "in" / f"{name}.png").write_bytes(b"broken")
    read, write = stream.read_image, outputs.encode_map

    def slowly(function, seconds):
        def call(first, *rest):
            time.sleep(seconds * (sum(map(ord, str(first)[-6:])) % 3))
            return function(first, *rest)

        return call

    monkeypatch.setattr(stream, "read_image", slowly(read, 0.01))
    monkeypatch.setattr(outputs, "encode_map", slowly(write, 0.003))
    summary = Predictor(model).predict_files([tmp_path / "in"], tmp_path / "out")
    good = [name for i, name in enumerate(names) if i % 5]
    assert summary.written == good == [entry["name"] for entry in index(tmp_path)["images"]]
    assert [f.path[-6:-4] for f in summary.failures] == [name for i, name in enumerate(names) if i % 5 == 0]


def test_batches_of_equal_size_give_the_maps_of_single_images(model, tmp_path):
    from dmtl.models import ModelConfig, create_model

    specs = [model.tasks[name].spec() for name in ("semseg", "normals", "depth")]
    torch.manual_seed(0)
    net = create_model(
        ModelConfig(tasks=specs, width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1)
    )
    for i, size in enumerate([(32, 40)] * 5 + [(40, 32)] + [(32, 40)] * 2):
        save(tmp_path / "in" / f"{i}.png", *size)
    for out, batch_size in (("one", 1), ("three", 3)):
        predictor = Predictor(net, steps=2, batch_size=batch_size)
        assert predictor.predict_files([tmp_path / "in"], tmp_path / out, npy=True).ok
    for i in range(8):
        one, three = (
            np.load(tmp_path / out / "normals" / f"{i}.npy").astype(float) for out in ("one", "three")
        )
        assert np.abs(one - three).max() < 4e-3  # float16 of values up to 1; another sample's noise: 0.1


def test_batches_are_filled_with_neighbours(model, tmp_path):
    for i, size in enumerate([(8, 9)] * 5 + [(9, 8)] + [(8, 9)] * 2):
        save(tmp_path / "in" / f"{i}.png", *size)
    Predictor(model, batch_size=3).predict_files([tmp_path / "in"], tmp_path / "out", pictures=False)
    assert [shape for shape, _, _ in model.calls] == [(3, 3, 8, 9), (2, 3, 8, 9), (1, 3, 9, 8), (2, 3, 8, 9)]


def test_every_row_of_a_batch_has_the_noise_of_an_image_alone(model, tmp_path):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png")
    predictor = Predictor(model, batch_size=3, seed=7)
    predictor.predict_files([tmp_path / "in"], tmp_path / "out")
    assert predictor.engine.noise.samples.tolist() == [0, 0, 0] and predictor.engine.noise.seed == 7


def test_one_bad_image_does_not_spoil_its_batch(model, tmp_path, monkeypatch):
    """Not finite, or too large together for the memory: computed one by one."""
    maps = type(model).maps

    def picky(self, image, tasks, **options):
        if len(image) > 2:
            raise RuntimeError("CUDA error: out of memory")
        out = maps(self, image, tasks, **options)
        black = bool((image < -1.7).flatten(1).all(1).any())
        return SimpleNamespace(maps=out.maps, finite=dict.fromkeys(tasks, torch.tensor(not black)))

    monkeypatch.setattr(type(model), "maps", picky)
    for i in range(5):
        save(tmp_path / "in" / f"{i}.png", 9, 9)
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "1.png")
    for batch_size in (2, 4):
        out = tmp_path / f"out{batch_size}"
        summary = Predictor(model, batch_size=batch_size).predict_files([tmp_path / "in"], out)
        assert summary.written == ["0", "2", "3", "4"]
        assert [f.reason for f in summary.failures] == ["semseg: the model's output is not finite"]


def test_uncertainty_is_written_and_shown(model, tmp_path):
    path = save(tmp_path / "a.png", 16, 200)
    sheets = []
    for samples in (1, 4):
        out = tmp_path / ("out" if samples > 1 else "sure")
        Predictor(model, tasks=["semseg", "depth"], samples=samples).predict_files([path], out)
        sheets.append(opened(out / "overview" / "a.png"))
    assert not (tmp_path / "sure" / "uncertainty").exists()
    (entry,) = index(tmp_path)["images"]
    predictor = Predictor(model, tasks=["depth"], samples=4)
    expected = (predictor(path)["depth"] - 3).abs().numpy()
    for task in ("semseg", "depth"):
        reading = entry["uncertainty"][task]
        stored = np.asarray(opened(tmp_path / "out" / "uncertainty" / task / "a.png"))
        assert stored.dtype == np.uint16
        assert np.abs(stored * reading["scale"] + reading["offset"] - expected).max() < 1e-4
    assert "entropy" in index(tmp_path)["uncertainty"]["semseg"]["means"]
    assert sheets[1].width * sheets[1].height > sheets[0].width * sheets[0].height


def test_automatic_steps_are_told(model, tmp_path):
    path = save(tmp_path / "a.png")
    Predictor(model, steps="auto").predict_files([path], tmp_path / "out")
    assert index(tmp_path)["steps"] == "auto" and index(tmp_path)["images"][0]["steps"] == 3


def test_a_video(model, tmp_path):
    pytest.importorskip("av")
    save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "z.png")
    film(tmp_path / "in" / "clip.mp4", count=12)
    predictor = Predictor(model, tasks=["semseg", "depth"], batch_size=4)
    summary = predictor.predict_files([tmp_path / "in"], tmp_path / "out", every=2)
    frames = [f"clip/{n:06}" for n in range(0, 12, 2)]
    assert summary.ok and summary.written == ["a", *frames, "z"]
    assert "2 images and 6 frames of 1 video predicted" in str(summary)
    found = index(tmp_path)
    video = {
        "input": str(tmp_path / "in" / "clip.mp4"),
        "name": "clip",
        "frames": 6,
        "frames_per_second": 5.0,
    }
    assert found["videos"] == [video]
    assert [entry.get("frame") for entry in found["images"]] == [None, 0, 2, 4, 6, 8, 10, None]
    for number, image in VideoReader(tmp_path / "in" / "clip.mp4", every=2):
        maps = predictor(image)
        stored = np.asarray(opened(tmp_path / "out" / "semseg" / "clip" / f"{number:06}.png"))
        assert np.array_equal(stored, maps["semseg"].numpy())
    for place in ("pictures/semseg", "pictures/depth", "overview"):
        reader = VideoReader(tmp_path / "out" / place / "clip.mp4")
        assert len(list(reader)) == 6 and reader.rate == 5
    shown = [image for _, image in VideoReader(tmp_path / "out" / "pictures" / "semseg" / "clip.mp4")]
    painted = model.tasks["semseg"].picture(np.asarray(opened(tmp_path / "out/semseg/clip/000010.png")))
    assert np.abs(shown[-1].permute(1, 2, 0).numpy()[20:].astype(int) - painted[20:]).mean() < 8
    assert not (tmp_path / "out" / "pictures" / "semseg" / "clip").exists()


def test_videos_without_pictures_and_a_damaged_one(model, tmp_path):
    pytest.importorskip("av")
    path = film(tmp_path / "cut.mkv", noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "text.mov").write_text("hello")
    summary = Predictor(model, tasks=["sal"]).predict_files(
        [path, tmp_path / "text.mov", save(tmp_path / "a.png")], tmp_path / "out", pictures=False
    )
    kept = len(summary.written) - 1
    assert kept >= 8 and summary.written[-1] == "a"
    assert [f.path for f in summary.failures] == [str(path), str(tmp_path / "text.mov")]
    assert summary.failures[0].reason.startswith("damaged or truncated (ends after")
    assert [video["frames"] for video in index(tmp_path)["videos"]] == [kept]
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"maps.json", "sal/a.png", *(f"sal/cut/{n:06}.png" for n in range(kept))}


def test_a_video_beside_what_shares_its_name(tmp_path):
    from dmtl.predict.inputs import find_inputs

    for name in ("clip.mp4", "clip/000000.png", "b.mp4", "b.jpg", "c.mov"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    inputs, *_ = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert [i.name for i in inputs] == ["b.jpg", "b.mp4", "c", "clip.mp4", "clip/000000"]


def test_times_and_what_was_left_out_are_told(model, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "in").mkdir()
    film(tmp_path / "in" / "clip.m4v", count=6), save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.gif").write_bytes(b"GIF89a")
    summary = Predictor(model, tasks=["sal"]).predict_files([tmp_path / "in"], tmp_path / "out", every=2)
    assert summary.ok and "1 image and 3 frames of 1 video predicted" in str(summary)
    assert "1 left out:\n  1 .gif (b.gif): not a suffix of images or videos" in str(summary)
    found = index(tmp_path)
    assert [entry.get("time") for entry in found["images"]] == [None, 0.0, 0.2, 0.4]
    assert found["left_out"][0] == {
        "kind": ".gif",
        "count": 1,
        "first": str(tmp_path / "in" / "b.gif"),
        "reason": "not a suffix of images or videos that can be read",
    }


@pytest.mark.parametrize("length", [238, 246, 251])
@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u65e5"])
def test_long_names(model, tmp_path, length, letter):
    """Those that an output can have are no trouble."""
    name = letter * (length // len(letter.encode()))
    paths = [save(tmp_path / "in" / f"{name}.png"), save(tmp_path / "in" / "b.png")]
    summary = Predictor(model, tasks=["sal"]).predict_files(paths, tmp_path / "out")
    assert summary.ok and set(summary.written) == {name, "b"}


@pytest.mark.parametrize(("name", "suffix"), [("a" * 252, ".ts"), ("a" * 255, ""), ("a" * 251, ".jpg")])
def test_names_too_long_for_an_output_are_failures_of_their_inputs(model, tmp_path, name, suffix):
    """By a longer suffix of the output, or where two inputs keep theirs."""
    pytest.importorskip("av")
    (tmp_path / "in").mkdir()
    path = film(tmp_path / "in" / "x.ts", count=3) if suffix == ".ts" else save(tmp_path / "in" / "x.png")
    path = path.rename(tmp_path / "in" / f"{name}{suffix}")
    others = [save(tmp_path / "in" / "b.png"), save(tmp_path / "in" / "c.png")]
    if suffix == ".jpg":
        others.append(save(tmp_path / "in" / f"{name}.bmp"))
    summary = Predictor(model, tasks=["sal"]).predict_files([*others, path], tmp_path / "out")
    assert {"b", "c"} <= set(summary.written)
    assert {f.path for f in summary.failures} == {str(path), *map(str, others[2:])}
    assert all("File name too long" in f.reason for f in summary.failures)
    assert len(summary.failures) == 1 + len(others[2:])
    assert len(summary.written) == (5 if suffix == ".ts" else 2)  # maps of frames have short names
    assert not any(p.name.startswith(".") for p in (tmp_path / "out").rglob("*"))


def test_without_pyav(model, tmp_path, without_av):
    """Refused at once where nothing else is to do; otherwise the video's failure."""
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"dmtl\[video\]"):
        Predictor(model).predict_files([tmp_path / "clip.mp4"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    paths = [tmp_path / "clip.mp4", save(tmp_path / "a.png")]
    summary = Predictor(model).predict_files(paths, tmp_path / "out")
    assert summary.written == ["a"] and "dmtl[video]" in summary.failures[0].reason


@pytest.mark.parametrize("kind", ["images", "video"])
def test_an_interruption_leaves_a_valid_index(model, tmp_path, monkeypatch, kind):
    if kind == "video":
        pytest.importorskip("av")
        (tmp_path / "in").mkdir()
        film(tmp_path / "in" / "clip.mp4")
    for i in range(30 if kind == "images" else 0):
        save(tmp_path / "in" / f"{i:02}.png")
    maps = type(model).maps

    def stopped(self, *arguments, **options):
        if len(self.calls) == 7:
            raise KeyboardInterrupt
        return maps(self, *arguments, **options)

    monkeypatch.setattr(type(model), "maps", stopped)
    with pytest.raises(KeyboardInterrupt):
        Predictor(model, tasks=["sal"]).predict_files([tmp_path / "in"], tmp_path / "out")
    names = [entry["name"] for entry in index(tmp_path)["images"]]
    assert len(names) == 7  # computed before, written after
    assert all((tmp_path / "out" / "sal" / f"{name}.png").is_file() for name in names)
    if kind == "video":
        assert len(list(VideoReader(tmp_path / "out" / "overview" / "clip.mp4"))) == 7
    assert not any(p.name.startswith(".") for p in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(("where", "what"), [(stream, "read_image"), (outputs, "encode_map")])
def test_a_bug_in_a_thread_is_not_lost(model, tmp_path, monkeypatch, where, what):
    function, calls = getattr(where, what), []

    def buggy(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise ZeroDivisionError("a bug")
        return function(*arguments)

    monkeypatch.setattr(where, what, buggy)
    for i in range(12):
        save(tmp_path / "in" / f"{i:02}.png")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        Predictor(model, tasks=["sal"]).predict_files([tmp_path / "in"], tmp_path / "out")
    assert 0 < len(index(tmp_path)["images"]) < 12


def test_a_video_that_cannot_be_written_stops_the_run(model, tmp_path):
    pytest.importorskip("av")
    path = film(tmp_path / "clip.mp4", count=5)
    predictor = Predictor(model, tasks=["sal"])
    predictor.predict_files([save(tmp_path / "a.png")], tmp_path / "out")
    (tmp_path / "out" / "pictures" / "sal" / "clip.mp4").mkdir()
    with pytest.raises(OSError, match="cannot write .*out/pictures/sal/clip.mp4"):
        predictor.predict_files([path], tmp_path / "out")
    assert not any(p.name.startswith(".") for p in (tmp_path / "out").rglob("*"))


def test_at_most_a_few_images_are_under_way(model, tmp_path, monkeypatch):
    """Of a slow writer's inputs most are not even read before the first are written."""
    read, write, image = [], [], save(tmp_path / "a.png")
    real = stream.read_image

    def counted(path):
        read.append(path)
        assert len(read) - len(write) < 40
        return real(image)

    def slow(self, frame, maps):
        time.sleep(0.002)
        write.append(frame.name)
        return {"name": frame.name}, {}

    monkeypatch.setattr(stream, "read_image", counted)
    monkeypatch.setattr(outputs.Outputs, "write", slow)
    for i in range(150):
        (tmp_path / f"{i:03}.jpg").write_bytes(b"")
    summary = Predictor(model).predict_files(sorted(tmp_path.glob("*.jpg")), tmp_path / "out")
    assert len(summary.written) == 150 == len(write)


@pytest.mark.parametrize("stage", ["computing", "reading"])
def test_the_summary_says_what_bounds(model, tmp_path, monkeypatch, stage):
    """The more one stage takes, the less the machine's other work matters."""
    where, name = (type(model), "maps") if stage == "computing" else (stream, "read_image")
    real = getattr(where, name)
    for i in range(8):
        save(tmp_path / "in" / f"{i}.png", 8, 8)
    predictor = Predictor(model, tasks=["sal"])
    for pause in (0.04, 0.4, 4.0):

        def slow(*arguments, **options):
            time.sleep(pause)
            return real(*arguments, **options)

        monkeypatch.setattr(where, name, slow)
        found = predictor.predict_files([tmp_path / "in"], tmp_path / f"out {pause}", pictures=False)
        assert "images/s" in str(found) and "% computing" in str(found)
        waits = found.waits
        waited = waits.reading if stage == "reading" else found.seconds - waits.reading - waits.writing
        if waited > 0.5 * found.seconds:
            return
    raise AssertionError(f"{found.waits} of {found.seconds} s, with 8 pauses of {pause} s in {stage}")
