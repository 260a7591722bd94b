"""Samples that cannot be read: the error at once, or left out up to a limit, and always told."""

import itertools
import re
import shutil
from pathlib import Path

import pytest
import torch

from dmtl.data import open_dataset
from dmtl.data.loading.loader import make_loader
from dmtl.data.loading.wrappers import Cached
from dmtl.errors import DataError
from tests.data.test_loader import CROP, equal


@pytest.fixture
def damaged(folder: Path) -> Path:
    """Nine images; the files of images 2 and 5 end in the middle, and so does the edge label of 7."""
    names = [f"n{number}" for number in range(9)]
    for part in ("images", "semseg", "edge", "normals", "depth", "cracks"):
        for name in names:
            shutil.copy(folder / part / "c/d.png", folder / part / f"{name}.png")
    (folder / "splits" / "train.txt").write_text("\n".join(names))
    for part, number in (("images", 2), ("images", 5), ("edge", 7)):
        path = folder / part / f"n{number}.png"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def loader(root, **options):
    return make_loader(open_dataset(root, "train"), **(dict(batch_size=3, shuffle=False) | options))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_is_an_error(damaged, workers):
    batches = iter(loader(damaged, workers=workers))
    with pytest.raises(DataError, match=re.escape(str(damaged / "images" / "n2.png"))) as error:
        next(batches)
    assert "skip_corrupt" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_left_out_and_told(damaged, workers):
    batches = loader(damaged, skip_corrupt=3, workers=workers)
    seen = list(batches)
    assert [batch.ids for batch in seen] == [["n0", "n1"], ["n3", "n4"], ["n6", "n8"]]
    assert [batch.index.tolist() for batch in seen] == [[0, 1], [3, 4], [6, 8]]
    assert [(len(batch), batch.total, batch.labelled["edge"]) for batch in seen] == [(2, 3, 3)] * 3
    for batch, path in zip(seen, ("images/n2.png", "images/n5.png", "edge/n7.png")):
        assert len(batch.skipped) == 1 and batch.skipped[0].startswith(str(damaged / path))
    assert batches.corrupt == {index: batch.skipped[0] for index, batch in zip((2, 5, 7), seen, strict=True)}
    assert all(equal(a, b) for a, b in zip(seen, batches, strict=True)), "again, within the limit"


@pytest.mark.parametrize("workers", [0, 2])
def test_one_too_many(damaged, workers):
    batches = iter(loader(damaged, skip_corrupt=2, workers=workers))
    assert len(next(batches).skipped) == len(next(batches).skipped) == 1
    path = re.escape(str(damaged / "edge" / "n7.png"))
    with pytest.raises(
        DataError, match=f"{path}.*unreadable sample number 3, expected at most data.skip_corrupt = 2"
    ):
        next(batches)


def test_a_label_that_is_not_asked_for_is_not_missed(damaged):
    assert sum(len(batch.skipped) for batch in loader(damaged, skip_corrupt=2, tasks=["depth"])) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_for_any_workers_and_processes(damaged, workers):
    options = dict(shuffle=True, transform=CROP, seed=4, skip_corrupt=3)
    whole = list(itertools.islice(loader(damaged, **options).stream(), 9))
    again = list(itertools.islice(loader(damaged, workers=workers, **options).stream(), 9))
    assert all(equal(a, b) and a.skipped == b.skipped for a, b in zip(whole, again, strict=True))
    shares = [loader(damaged, rank=rank, world=2, workers=workers, batch_size=9, **{**options, "seed": 5})
              for rank in range(2)]  # fmt: skip
    parts = [next(iter(share)) for share in shares]
    assert sorted(sum((part.ids for part in parts), [])) == ["n0", "n1", "n3", "n4", "n6", "n8"]
    assert {message for part in parts for message in part.skipped} == set().union(
        *(share.corrupt.values() for share in shares)
    )
    assert all(part.total == 9 for part in parts) and sum(len(part.skipped) for part in parts) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_nothing(damaged, workers):
    batches = iter(loader(damaged, batch_size=1, skip_corrupt=3, workers=workers))
    assert next(batches).ids == ["n0"] and next(batches).ids == ["n1"]
    with pytest.raises(DataError, match="n2.png.*no other sample of this process's batch can be read"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_memory_cache_changes_nothing(damaged, workers):
    plain = list(loader(damaged, skip_corrupt=3))
    cached = make_loader(
        Cached(open_dataset(damaged, "train")), batch_size=3, shuffle=False, skip_corrupt=3, workers=workers
    )
    for _ in range(2):
        seen = list(cached)
        assert all(equal(a, b) and a.skipped == b.skipped for a, b in zip(plain, seen, strict=True))


def test_other_errors_are_never_skipped(synthetic, monkeypatch):
    def fails(index, tasks=None):
        raise OSError(28, "no room in /somewhere")

    monkeypatch.setattr(synthetic, "read", fails)
    for workers in (0, 1):
        with pytest.raises(OSError, match="no room in /somewhere") as error:
            next(iter(make_loader(synthetic, batch_size=2, skip_corrupt=20, workers=workers)))
        assert error.value.errno == 28


def test_pinned_batches_keep_what_is_told(synthetic):
    batch = next(iter(make_loader(synthetic, batch_size=2)))
    batch.skipped = ["x"]
    moved = batch.to("meta")
    assert (moved.total, moved.labelled, moved.skipped) == (2, dict.fromkeys(batch.present, 2), ["x"])
    assert isinstance(moved.image, torch.Tensor) and moved.image.device.type == "meta"
