"""Data sets written as folders: equal values, nothing replaced, interrupted anywhere and taken up again."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.data import open_dataset
from dmtl.data.benchmarks.detect import open_distribution
from dmtl.data.folder.dataset import Folder
from dmtl.data.folder.write import export_folder
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError
from tests.data.conftest import Synthetic
from tests.data.tiny import HEIGHT, WIDTH, Tiny, write_tiny
from tests.fixtures import FIXTURES, write_fixture


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def lines(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_tiny(tmp_path / "source")


@pytest.fixture
def whole(source, tmp_path) -> Path:
    """Its unbroken conversion."""
    for split in ("train", "val"):
        export_folder(Tiny(source, split), tmp_path / "whole")
    return tmp_path / "whole"


# -- what is written ---------------------------------------------------------------------------------------


def test_a_conversion_reads_equal_bits(source, whole):
    for split, count in (("train", 9), ("val", 3)):
        ours, theirs = Folder(whole, split), Tiny(source, split)
        assert ours.ids == theirs.ids and len(ours) == count and ours.tasks == theirs.tasks
        assert ours.evaluation == {"frame": [32, 32], "max_dist": 0.01}
        for index in range(count):
            a, b = ours.read(index), theirs.read(index)
            assert torch.equal(a.image, b.image) and a.labels.keys() == b.labels.keys()
            assert ("depth" in a.labels) == (index % 3 != 1)
            for task in a.labels:
                assert a.labels[task].dtype == b.labels[task].dtype
                assert a.labels[task].numpy().tobytes() == b.labels[task].numpy().tobytes()
            assert torch.equal(ours.boundaries(index), theirs.boundaries(index))


def test_files_are_those_of_the_source(source, whole):
    """Images byte for byte, labels value for value, and nothing besides."""
    found = contents(whole)
    image = (source / "jpg" / "train-004.JPG").read_bytes()
    assert found.pop("images/train/004.jpg") == image
    stored = np.asarray(Image.open(source / "normals" / "train-004.png"))
    assert (np.asarray(Image.open(whole / "normals/train/004.png")) == stored).all()
    depth = np.load(whole / "depth/train/003.npy")
    assert depth.dtype == np.float32 and depth.shape == (HEIGHT, WIDTH)
    assert depth.tobytes() == np.load(source / "depth" / "train-003.npy").tobytes()
    per_kind = {"images": 11, "semseg": 12, "normals": 12, "boundaries": 12, "depth": 8, "splits": 2}
    for kind, count in per_kind.items():
        assert sum(name.startswith(f"{kind}/") for name in found) == count
    assert len(found) == sum(per_kind.values()) + 2  # dataset.yaml, manifest.jsonl
    described = yaml.safe_load((whole / "dataset.yaml").read_text())
    assert described["description"] == "Converted from tiny."
    assert described["boundaries"] == "boundaries" and list(described["tasks"]) == [
        "semseg",
        "normals",
        "depth",
    ]


def test_the_manifest_has_every_file(whole):
    entries = lines(whole)
    assert [e["id"] for e in entries] == [f"train/{n:03d}" for n in range(9)] + [
        f"val/{n:03d}" for n in range(3)
    ]
    assert [e["split"] for e in entries] == ["train"] * 9 + ["val"] * 3
    recorded = {path: facts for entry in entries for path, facts in entry["files"].items()}
    for path, content in contents(whole).items():
        if path.split("/")[0] not in ("splits", "dataset.yaml", "manifest.jsonl"):
            assert recorded.pop(path) == [len(content), hashlib.sha256(content).hexdigest()]
    assert recorded == {}


def test_the_summary_counts(source, tmp_path):
    made = export_folder(Tiny(source, "train"), tmp_path / "out")
    assert os.fspath(made) == str(tmp_path / "out")
    assert (made.images, made.written, made.skipped) == (9, 9, [])
    assert made.labels == {"semseg": 9, "normals": 9, "depth": 6}
    found = contents(tmp_path / "out")
    assert made.size == sum(len(c) for p, c in found.items() if "/" in p and not p.startswith("splits/"))
    assert made.unknown["normals"] == (9 * WIDTH, 9 * HEIGHT * WIDTH)
    assert made.unknown["depth"] == (6 * 2 * WIDTH, 6 * HEIGHT * WIDTH)
    ids = [np.asarray(Image.open(p)) for p in sorted((source / "semseg").glob("train*"))]
    assert made.unknown["semseg"] == (int((np.stack(ids) == 255).sum()), 9 * HEIGHT * WIDTH)


def test_export_is_read_back_exactly(tmp_path):
    data = Synthetic(count=3, sizes=((10, 12), (9, 7)))
    export_folder(data, tmp_path / "out")
    back = Folder(tmp_path / "out", "train")
    assert back.ids == data.ids and back.tasks == data.tasks and back.name == "synthetic"
    for index in range(3):
        a, b = data.read(index), back.read(index)
        assert torch.equal(a.image, b.image) and a.labels.keys() == b.labels.keys()
        for task in a.labels:
            assert a.labels[task].dtype == b.labels[task].dtype
            tolerance = 1e-6 if task == "normals" else 0
            assert torch.allclose(a.labels[task], b.labels[task], rtol=0, atol=tolerance)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]


def test_scenes_survive_export(tmp_path):
    """All six tasks through files and back: the same valid pixels, the same values."""
    scenes = open_dataset("scenes", "val", count=4, size=(48, 64))
    back = Folder(export_folder(scenes, tmp_path), "val")
    assert back.tasks == scenes.tasks
    for index in range(4):
        a, b = scenes.read(index), back.read(index)
        assert torch.equal(a.image, b.image)
        for name, task in scenes.tasks.items():
            valid = task.valid(a.labels[name])
            assert torch.equal(valid, task.valid(b.labels[name]))
            distance = torch.where(valid, a.labels[name].float() - b.labels[name].float(), 0).abs()
            assert distance.max() < 1e-6


def test_export_of_partial_labels_and_of_a_second_split(tmp_path):
    data = Synthetic(count=4)
    labels = LabelMatrix.one_label(data.ids, list(data.tasks), 0)
    export_folder(data, tmp_path, labels)
    assert Folder(tmp_path, "train").available().matrix.tolist() == labels.matrix.tolist()
    assert export_folder(data, tmp_path, labels).written == 0
    data.split = "val"
    with pytest.raises(
        DataError, match="manifest.jsonl: 'i000' exists already in train, expected ids that differ"
    ):
        export_folder(data, tmp_path)
    with pytest.raises(DataError, match="unknown split 'val'"):
        Folder(tmp_path, "val")
    data.ids = [f"val/{id}" for id in data.ids]
    export_folder(data, tmp_path)
    assert len(Folder(tmp_path, "val")) == len(Folder(tmp_path, "train")) == 4


# -- going on ----------------------------------------------------------------------------------------------


def test_a_complete_conversion_writes_nothing(source, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    made = export_folder(Tiny(source, "train"), whole)
    assert (made.images, made.written) == (9, 0) and made.labels["depth"] == 6
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


@pytest.mark.parametrize(
    ("workers", "wanted"),
    [(0, 4), pytest.param(0, 24, marks=pytest.mark.slow), pytest.param(2, 6, marks=pytest.mark.slow)],
)
def test_killed_anywhere_it_ends_with_the_same_folder(source, whole, tmp_path, workers, wanted):
    """kill -9 after random times, later each time, until a call comes to its end: not one byte differs.

    Folder after folder until `wanted` calls were killed; a folder without a kill, on a fast machine, makes
    the times of the next ones shorter.
    """
    random, kills, shortest = Random(workers), 0, 0.02 + 0.2 * (workers > 0)
    for folder in itertools.count():
        out, before = tmp_path / f"broken{folder}", kills
        for split in ("train", "val"):
            longest = shortest
            while not ended(
                lambda: export_folder(Tiny(source, split), out, workers=workers), random, longest
            ):
                kills, longest = kills + 1, 1.2 * longest
                if kills % 3 == 0 and (out / "manifest.jsonl").exists():
                    with open(out / "manifest.jsonl", "ab") as torn:  # killed while it wrote a line
                        torn.write(b'{"id":"train/003","split":"tr')
        assert contents(out) == contents(whole)
        if kills >= wanted:
            return
        if kills == before:
            shortest /= 2


def ended(call, random: Random, longest: float) -> bool:
    """Whether `call` came to its end in a process of its own before it was killed, `longest` s later."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + random.uniform(0, longest)
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_sample_whose_files_are_not_all_there_is_written_again(source, whole, tmp_path):
    expected = contents(whole)
    (whole / "depth" / "train" / "003.npy").unlink()
    (whole / "semseg" / "train" / "005.png").write_bytes(b"short")
    (whole / "normals" / "val" / "001.png").unlink()
    assert export_folder(Tiny(source, "train"), whole).written == 2
    assert export_folder(Tiny(source, "val"), whole).written == 1
    assert contents(whole) == expected


def test_the_order_of_the_manifest_is_of_no_matter(source, whole):
    expected = contents(whole)
    written = (whole / "manifest.jsonl").read_text().splitlines(keepends=True)
    (whole / "manifest.jsonl").write_text("".join(reversed(written)))
    assert export_folder(Tiny(source, "train"), whole).written == 0
    assert export_folder(Tiny(source, "val"), whole).written == 0
    assert contents(whole) == expected


def test_workers_write_the_same(source, whole, tmp_path):
    for split in ("train", "val"):
        export_folder(Tiny(source, split), tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(whole)


# -- what is refused ---------------------------------------------------------------------------------------


def test_another_source_is_refused(source, whole, tmp_path):
    """Other pictures under the same names, fewer images, other tasks, another data set: nothing changes."""
    before = contents(whole)
    other = write_tiny(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="files of 'train/000' differ from those of tiny"):
        export_folder(Tiny(other, "train"), whole)
    fewer = write_tiny(tmp_path / "fewer", train=4)
    with pytest.raises(DataError, match="lists 'train/004' in train, which is not in tiny"):
        export_folder(Tiny(fewer, "train"), whole)
    with pytest.raises(DataError, match="dataset.yaml: has other tasks than the data set"):
        export_folder(Tiny(source, "train", ["depth"]), whole)
    renamed = Tiny(source, "train")
    renamed.name = "huge"
    with pytest.raises(DataError, match="dataset.yaml: name is 'tiny', expected 'huge'"):
        export_folder(renamed, whole)
    with pytest.raises(DataError, match="lists 'train/000' in train, which is not in synthetic"):
        export_folder(Synthetic(count=1), whole)
    assert contents(whole) == before


def test_files_of_others_are_never_replaced(source, tmp_path):
    mine = tmp_path / "out" / "images" / "train" / "002.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my picture")
    with pytest.raises(
        DataError, match="train/002.jpg: exists already, expected a new split or an empty folder"
    ):
        export_folder(Tiny(source, "train"), tmp_path / "out", skip_corrupt=9)
    assert mine.read_bytes() == b"my picture"


def test_a_list_of_others_is_never_replaced(source, whole, tmp_path):
    (whole / "manifest.jsonl").unlink()
    before = contents(whole)
    with pytest.raises(DataError, match="train.txt: exists already, expected a new split or an empty folder"):
        export_folder(Tiny(source, "train"), whole)
    assert contents(whole) == before


def test_no_link_leads_the_writer_out(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="images/train/000.jpg: a link to .*elsewhere"):
        export_folder(Tiny(source, "train"), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", "null", '{"id": "a", "split": "train", "files": {"/etc/passwd": [1, "%s"]}}' % ("a" * 64),
     '{"id": "../a", "split": "train", "files": {}}', '{"id": "a", "split": "train", "files": {"a": [1]}}',
     '{"id": "a", "split": "train", "files": {"a": [-1, "%s"]}}' % ("a" * 64),
     '{"id": "a", "split": "train", "files": {"a": [1, "xyz"]}}', "\udcff", "[" * 5000],
)  # fmt: skip
def test_a_damaged_manifest_is_named(source, whole, line):
    content = (whole / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    content[2] = line.encode(errors="surrogateescape") + b"\n"
    (whole / "manifest.jsonl").write_bytes(b"".join(content))
    with pytest.raises(DataError, match="manifest.jsonl: line 3: .*expected"):
        export_folder(Tiny(source, "train"), whole)


def test_two_writers_at_once_are_refused(source, whole, monkeypatch):
    import fcntl

    monkeypatch.setattr("dmtl.data.folder.write._PATIENCE_S", 0)
    handle = os.open(whole, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="whole: another process is writing to this folder"):
        export_folder(Tiny(source, "train"), whole)
    os.close(handle)
    assert export_folder(Tiny(source, "train"), whole).written == 0


# -- damage and full disks ---------------------------------------------------------------------------------


def test_a_damaged_sample_stops_it_and_mending_goes_on(source, whole, tmp_path):
    damaged = source / "semseg" / "train-004.png"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:60])
    message = f"{damaged}: .*sample 'train/004'; 4 of 9 samples of train are in .*repeat the call to continue"
    with pytest.raises(DataError, match=message):
        export_folder(Tiny(source, "train"), tmp_path / "out")
    assert not (tmp_path / "out" / "splits").exists() and len(lines(tmp_path / "out")) == 4
    damaged.write_bytes(good)
    assert export_folder(Tiny(source, "train"), tmp_path / "out").written == 5
    export_folder(Tiny(source, "val"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_some_damaged_samples_can_be_skipped(source, whole, tmp_path, workers):
    """They are named, left out of the list, and taken in when they are mended."""
    good = {}
    for path in (source / "jpg" / "train-000.JPG", source / "depth" / "train-008.npy"):
        good[path] = path.read_bytes()
        path.write_bytes(good[path][:50])
    with pytest.raises(DataError, match="sample 'train/008'"):
        export_folder(Tiny(source, "train"), tmp_path / "out", skip_corrupt=1, workers=workers)
    made = export_folder(Tiny(source, "train"), tmp_path / "out", skip_corrupt=2, workers=workers)
    assert made.images == 7 and [m.split(": ")[0] for m in made.skipped] == [str(path) for path in good]
    assert Folder(tmp_path / "out", "train").ids == [f"train/{n:03d}" for n in range(1, 8)]
    for path, content in good.items():
        path.write_bytes(content)
    assert export_folder(Tiny(source, "train"), tmp_path / "out").written == 2
    export_folder(Tiny(source, "val"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_nothing_readable_is_an_error(source, tmp_path):
    for path in (source / "jpg").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no sample of val can be read"):
        export_folder(Tiny(source, "val"), tmp_path / "out", skip_corrupt=100)


@pytest.mark.parametrize("writes", [0, 1, 2, 9, 27, 43, 44, 45])
def test_a_full_disk_is_one_error_and_it_goes_on(source, whole, tmp_path, monkeypatch, writes):
    """Full at dataset.yaml, the manifest, any of 42 files of samples, the manifest again, and the list."""
    left, fsync = iter(range(writes)), os.fsync

    def full(handle):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        export_folder(Tiny(source, "train"), tmp_path / "out")
    assert error.value.errno == errno.ENOSPC and str(tmp_path / "out") in str(error.value)
    monkeypatch.undo()
    for split in ("train", "val"):
        export_folder(Tiny(source, split), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


# -- the benchmarks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FIXTURES)
def test_every_benchmark_reads_equal_bits_once_converted(tmp_path, format):
    """The folder gives what the distribution gives: images, labels, boundaries, how it is evaluated."""
    source = write_fixture(format, tmp_path / "source", train=2, val=2, size=(48, 64), seed=3)
    for split in ("train", "val"):
        theirs = open_distribution(source, split, format=format.removesuffix("-label").removesuffix("-mt"))
        ours = Folder(export_folder(theirs, tmp_path / "out"), split)
        assert ours.ids == theirs.ids and ours.tasks == theirs.tasks
        assert ours.evaluation == {k: list(v) if k == "frame" else v for k, v in theirs.evaluation.items()}
        for index in range(2):
            a, b = ours.read(index), theirs.read(index)
            assert torch.equal(a.image, b.image) and a.labels.keys() == b.labels.keys()
            for task in a.labels:
                assert a.labels[task].numpy().tobytes() == b.labels[task].numpy().tobytes()
            a, b = ours.boundaries(index), theirs.boundaries(index)
            assert a is b is None or torch.equal(a, b)
