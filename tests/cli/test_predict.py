"""`dmtl predict` beyond images alone: videos, batches, several draws, automatic steps."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.predict.test_parts import tree
from tests.predict.test_video import film

from .conftest import TASKS, environment

# `dmtl` whose second process kills itself once, in the middle of writing its n-th file.
KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from dmtl.cli import main

mark, number = Path(sys.argv[1]), int(sys.argv[2])
sync, count = os.fsync, itertools.count(1)

def fsync(handle):
    if os.environ["RANK"] == "1" and next(count) >= number and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)

os.fsync = fsync
sys.exit(main(sys.argv[3:]))
"""


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
        ("--every 0", "--every must be at least 1, got 0"),
        ("--frames 0", "--frames must be at least 1, got 0"),
        ("--samples 0", "--samples must be at least 1, got 0"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--tile 33", "--tile must be 0 or a multiple of 32, got 33"),
        ("--steps auto --batch-size 2", "--batch-size must be 1 with steps"),
        ("--device gpu", "device must be"),
        ("--shard 0/3", "--shard must be K/N with K from 1 to N, such as 3/16, got '0/3'"),
        ("--shard 4/3", "--shard must be K/N"),
        ("--shard 3", "--shard must be K/N"),
        ("--shard one/3", "--shard must be K/N"),
    ],
)
def test_options_that_cannot_work(dmtl, tmp_path, trained, data, words, text):
    status, out, err = dmtl(
        "predict", trained, data / "images", "--out", "maps", "--device", "cpu", *words.split()
    )
    assert (status, out) == (2, "") and text in err and len(err.splitlines()) == 1
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("count", "processes", "killed"), [(12, 2, False), pytest.param(2000, 3, True, marks=pytest.mark.slow)]
)
def test_processes_share_the_images(dmtl, tmp_path, trained, count, processes, killed):
    """Every output is there once, and everything, maps.json too, is that of one process to the bit, also if
    a process is killed on the way and all are started again."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"in/{i:04}.png")
    (tmp_path / "in" / "0003.png").write_bytes(b"broken")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    words = ["predict", trained, "in", "--device", "cpu", *(["--no-pictures"] if count > 100 else [])]
    status, out, _ = dmtl(*words, "--out", "one")
    assert status == 1 and f"{count - 1:,} images predicted into one" in out
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--max-restarts=1", "killed.py", "mark", 2 * count // 3] if killed else ["-m", "dmtl"]
    command += [*words, "--out", "three"]
    run = dict(cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1800)
    done = subprocess.run([str(word) for word in command], **run)
    assert (tmp_path / "mark").exists() == killed, done.stderr
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stderr  # as with one process: 0003
    assert done.stdout.count(f"{count - 1:,} images predicted into three") == 1, done.stdout
    assert done.stdout.count("predicted into") == 1
    before = re.search(r"([\d,]+) of them earlier", done.stdout)
    assert (before is not None) == killed
    assert before is None or 0 < int(before[1].replace(",", "")) < count - 1
    assert "1 .txt (notes.txt)" in done.stdout
    assert tree(tmp_path / "three") == tree(tmp_path / "one")


def test_a_data_set_and_maps_of_another_command(dmtl, tmp_path, trained, data):
    """Of a data set only the images are predicted; `eval --save-maps` leaves what predict wrote as it is."""
    out = dmtl("predict", trained, data, "--out", "maps", "--no-pictures").out
    assert "6 images predicted" in out and "only its images are inputs" in out
    before = tree(tmp_path / "maps")
    assert {name for name in before if "semseg" in str(name)} == {f"semseg/{id}.png" for id in "abcdef"}
    status, out, err = dmtl("eval", trained, "--data", data, "--save-maps", "maps")
    assert (status, out) == (2, "") and "maps: holds maps of dmtl predict, choose another folder" in err
    assert tree(tmp_path / "maps") == before


def test_shards_and_another_model(dmtl, tmp_path, trained, baseline, data):
    """`--shard` from the command line; the maps of another model are refused."""
    for k in (2, 1):
        words = [data / "images", "--out", "maps", "--no-pictures"]
        status, out, err = dmtl("predict", trained, *words, "--shard", f"{k}/2")
        assert (status, err) == (0, "") and ("missing: 1" in out) == (k == 2)
    index = json.loads((tmp_path / "maps" / "maps.json").read_text())
    assert [entry["name"] for entry in index["images"]] == list("abcdef")
    status, out, err = dmtl("predict", baseline, *words)
    assert (status, out) == (2, "") and "maps: holds maps made with another model" in err
