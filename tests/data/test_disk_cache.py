"""Samples kept on disk: read once, by whoever; never mixed; damaged files noticed."""

import errno
import itertools
import os
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dmtl.data import DiskCached, open_dataset
from dmtl.data.loading.loader import make_loader
from dmtl.data.loading.wrappers import Cached, Resized, Subset
from tests.data.conftest import Synthetic, describe
from tests.data.test_loader import CROP, TASKS, equal, one_label


def same(a, b) -> bool:
    return (
        a.id == b.id
        and a.valid_size == b.valid_size
        and a.image.dtype == b.image.dtype
        and torch.equal(a.image, b.image)
        and list(a.labels) == list(b.labels)
        and all(
            a.labels[t].dtype == b.labels[t].dtype and torch.equal(a.labels[t], b.labels[t]) for t in a.labels
        )
    )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def no_other_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_reads_nothing(tmp_path, monkeypatch, workers):
    data = Synthetic()
    labels = one_label(data)
    plain = list(itertools.islice(make_loader(data, labels, CROP, batch_size=4).stream(), 10))
    options = dict(labels=labels, transform=CROP, batch_size=4, workers=workers)
    first = make_loader(DiskCached(Synthetic(), tmp_path), **options).stream()
    assert all(equal(a, b) for a, b in zip(plain, first))
    assert len(files(tmp_path)) == 20 + 20, "images, and the one visible label of each"
    data = Synthetic()
    monkeypatch.setattr(Synthetic, "read", lambda *_: pytest.fail("read again"))
    second = make_loader(DiskCached(data, tmp_path), **options).stream()
    assert all(equal(a, b) for a, b in zip(plain, second))


def test_hidden_labels_are_neither_read_nor_kept(tmp_path, synthetic):
    cached, labels = DiskCached(synthetic, tmp_path), one_label(synthetic)
    for index, id in enumerate(synthetic.ids):
        assert same(cached.read(index, labels.tasks_of(id)), Synthetic().read(index, labels.tasks_of(id)))
    assert sorted(synthetic.asked) == sorted(
        (i, t) for i, id in enumerate(synthetic.ids) for t in labels.tasks_of(id)
    )
    kept = {(int(p.stem), p.parent.name.split("-")[0]) for p in files(tmp_path)}
    assert kept == {(i, "image") for i in range(20)} | set(synthetic.asked)
    assert cached.read(0, []).labels == {} and list(cached.read(0, TASKS[::-1]).labels) == TASKS[::-1]
    assert sorted(t for i, t in synthetic.asked if i == 0) == sorted(TASKS), "only what was not there"


def test_below_a_memory_cache(tmp_path, synthetic):
    Cached(DiskCached(synthetic, tmp_path)).warm(one_label(synthetic))
    asked = len(synthetic.asked)
    cached = Cached(DiskCached(synthetic, tmp_path)).warm(one_label(synthetic), threads=2)
    assert len(synthetic.asked) == asked == 20 and len(cached._kept) == 20
    copy = pickle.loads(pickle.dumps(cached))
    assert copy._kept == {} and copy.used_bytes == 0 and same(copy.read(3), synthetic.read(3))


def test_a_folder_with_missing_labels(tmp_path, folder):
    data = open_dataset(folder, "train")
    for _ in range(2):
        cached = DiskCached(data, tmp_path / "cache")
        assert cached.available() == data.available() and cached.ids == data.ids
        assert all(same(cached.read(i), data.read(i)) for i in range(3))
    assert set(cached.read(0).labels) == {"semseg", "edge", "normals", "cracks"}


def test_padding_is_kept(tmp_path, synthetic, monkeypatch):
    read = Synthetic.read

    def padded(self, index, tasks=None):
        sample = read(self, index, tasks)
        sample.valid_size, sample.valid_at = (20, 30), (1, 2)
        return sample

    monkeypatch.setattr(Synthetic, "read", padded)
    for _ in range(2):
        kept = DiskCached(synthetic, tmp_path).read(0)
        assert (kept.valid_size, kept.valid_at) == ((20, 30), (1, 2))


def versions(folder: Path) -> dict:
    """Data sets of which no two may share anything, all with ids that begin alike."""
    return {
        "scenes": open_dataset("scenes", "train", count=2, size=(16, 16)),
        "seed": open_dataset("scenes", "train", count=2, size=(16, 16), seed=1),
        "scene size": open_dataset("scenes", "train", count=2, size=(16, 24)),
        "scene split": open_dataset("scenes", "val", count=2, size=(16, 16)),
        "folder": open_dataset(folder, "train"),
        "split": open_dataset(folder, "val"),
        "size": open_dataset(folder, "train", size=(8, 8)),
        "other size": open_dataset(folder, "train", size=(8, 12)),
        "other ids": Subset(open_dataset(folder, "train"), [2, 0]),
    }


def test_nothing_is_mixed(tmp_path, folder):
    for _ in range(2):
        for name, data in versions(folder).items():
            cached = DiskCached(data, tmp_path / "cache")
            for index in range(len(data)):
                assert same(cached.read(index), data.read(index)), name


def test_an_edited_file_or_description_counts(tmp_path, folder):
    def depth() -> tuple[torch.Tensor, torch.Tensor]:
        sample = DiskCached(open_dataset(folder, "train"), tmp_path / "cache").read(1)
        return sample.image, sample.labels["depth"]

    image, metres = depth()
    task = {"depth": {"kind": "scalar", "scale": 0.02}}
    describe(folder, tasks=task)
    known = (metres > 0) & (metres != 255)
    assert torch.equal(depth()[1][known], 2 * metres[known])
    before = (folder / "images/b.png").stat()
    (folder / "images/b.png").write_bytes((folder / "images/a.png").read_bytes())
    os.utime(folder / "images/b.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert not torch.equal(depth()[0], image)


def test_another_choice_of_tasks_shares_images_and_labels(tmp_path, folder):
    DiskCached(open_dataset(folder, "train"), tmp_path / "cache").read(2)
    before = files(tmp_path / "cache")
    DiskCached(open_dataset(folder, "train", tasks=["edge"]), tmp_path / "cache").read(2)
    assert files(tmp_path / "cache") == before


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reshaped(path):
    np.savez(path, pixels=np.zeros((4, 4), np.uint8))


def misnamed(path):
    np.savez(path, other=np.zeros((3, 24, 32), np.uint8))


@pytest.mark.parametrize("harm", [truncated, emptied, flipped, reshaped, misnamed])
@pytest.mark.parametrize("part", ["image", "edge"])
def test_damaged_files_are_noticed_and_made_again(tmp_path, synthetic, harm, part):
    cached = DiskCached(synthetic, tmp_path)
    whole = cached.read(0)
    (path,) = (p for p in files(tmp_path) if p.parent.name.startswith(part))
    good = path.read_bytes()
    harm(path)
    with pytest.warns(UserWarning, match="damaged cache file .*, writing it again") as told:
        assert same(cached.read(0), whole)
    assert len(told) == 1 and str(told[0].message).startswith(f"{path}: ")
    assert [p.name for p in files(path.parent)] == [path.name] and len(path.read_bytes()) == len(good)
    assert same(DiskCached(Synthetic(), tmp_path).read(0), whole), "whole again, and nothing to be said"


def test_no_flipped_byte_is_ever_served(tmp_path):
    data = Synthetic(tasks=("edge",), sizes=((4, 6),))
    cached = DiskCached(data, tmp_path)
    whole = cached.read(0)
    path = next(p for p in files(tmp_path) if p.parent.name.startswith("edge"))
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert same(cached.read(0), whole), f"byte {place}"


def _fill(folder) -> int:
    return sum(DiskCached(Synthetic(), folder).read(i % 20).image.int().sum().item() for i in range(60))


def test_several_processes_fill_it_together(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        sums = list(pool.map(_fill, [tmp_path] * 4))
    assert len(set(sums)) == 1 and len(files(tmp_path)) == 20 * 5
    assert all(same(DiskCached(Synthetic(), tmp_path).read(i), Synthetic().read(i)) for i in range(20))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_said(tiny_disk, synthetic, workers):
    message = f"{tiny_disk}/cache: cannot cache samples here .*No space left on device.*data.cache_dir"
    cached = DiskCached(synthetic, tiny_disk / "cache")
    with pytest.raises(OSError, match=message) as error:
        list(make_loader(cached, batch_size=2, workers=workers, skip_corrupt=20))
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=message):
        Cached(cached).warm()
    kept = [p for p in files(tiny_disk) if p.name.endswith(".npz") and not p.name.startswith(".")]
    assert kept == files(tiny_disk), "nothing half written is left"
    assert all(same(cached.read(int(path.stem), []), synthetic.read(int(path.stem), []))
               for path in kept if path.parent.name.startswith("image"))  # fmt: skip


def test_a_file_in_the_way(tmp_path, synthetic):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match="cache: cannot cache samples here"):
        DiskCached(synthetic, tmp_path / "cache").read(0)


def test_resized_below(tmp_path, synthetic):
    DiskCached(Resized(synthetic, (12, 16)), tmp_path).read(0)
    assert DiskCached(synthetic, tmp_path).read(0).size == (24, 32)
    assert DiskCached(Resized(synthetic, (12, 16)), tmp_path).read(0).size == (12, 16)
