"""`dmtl predict` beyond images alone: videos, batches, several draws, automatic steps."""

from __future__ import annotations

import json

import pytest

from tests.predict.test_video import film

from .conftest import TASKS


def test_video(dmtl, tmp_path, trained):
    """Maps of every third frame, and a video of each task's pictures."""
    av = pytest.importorskip("av")
    film(tmp_path / "clip.mp4", count=10)
    status, out, err = dmtl("predict", trained, "clip.mp4", "--out", "maps", "--every", 3, "--frames", 3)
    assert (status, err) == (0, "")
    assert "3 frames of 1 video predicted into maps" in out and "frames/s" in out
    for task in TASKS:
        maps = sorted(path.name for path in (tmp_path / "maps" / task / "clip").iterdir())
        assert maps == ["000000.png", "000003.png", "000006.png"]
        with av.open(str(tmp_path / "maps" / "pictures" / task / "clip.mp4")) as container:
            assert len(list(container.decode(video=0))) == 3
            assert float(container.streams.video[0].average_rate) == pytest.approx(10 / 3, rel=1e-3)
    assert (tmp_path / "maps" / "overview" / "clip.mp4").is_file()


def test_damaged_video(dmtl, tmp_path, trained):
    pytest.importorskip("av")
    path = film(tmp_path / "clip.mkv", noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    status, out, err = dmtl("predict", trained, path, "--out", "maps", "--tasks", "height", "--every", 2)
    assert (status, err) == (1, "")
    assert "clip.mkv: damaged or truncated" in out and "frames of 1 video predicted" in out
    assert (tmp_path / "maps" / "height" / "clip" / "000002.png").is_file()


def test_draws_batches_tiles_and_precision(dmtl, tmp_path, trained, data):
    words = ["--samples", "2", "--batch-size", "3", "--precision", "fp32", "--tile", "0", "--no-pictures"]
    status, out, err = dmtl("predict", trained, data / "images", "--out", "maps", *words)
    assert (status, err) == (0, "") and "6 images predicted" in out and "% computing" in out
    index = json.loads((tmp_path / "maps" / "maps.json").read_text())
    assert (index["samples"], index["precision"]) == (2, "fp32") and set(index["uncertainty"]) == set(TASKS)
    for task in TASKS:
        assert len(list((tmp_path / "maps" / "uncertainty" / task).iterdir())) == 6


def test_automatic_steps(dmtl, tmp_path, trained, data):
    status, _, err = dmtl("predict", trained, data / "images", "--out", "maps", "--steps", "auto")
    assert (status, err) == (0, "")
    index = json.loads((tmp_path / "maps" / "maps.json").read_text())
    assert index["steps"] == "auto" and all(entry["steps"] >= 1 for entry in index["images"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--every 0", "every must be at least 1, got 0"),
        ("--frames 0", "frames must be at least 1, got 0"),
        ("--samples 0", "samples must be at least 1, got 0"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--tile 33", "tile must be 0 or a multiple of 32, got 33"),
        ("--steps auto --batch-size 2", "batch_size must be 1 with steps"),
        ("--device gpu", "device must be"),
    ],
)
def test_options_that_cannot_work(dmtl, tmp_path, trained, data, words, text):
    status, out, err = dmtl(
        "predict", trained, data / "images", "--out", "maps", "--device", "cpu", *words.split()
    )
    assert (status, out) == (2, "") and text in err and len(err.splitlines()) == 1
    assert not (tmp_path / "maps").exists()
