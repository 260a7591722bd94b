"""One batch for several processes, evaluation in shards, batches in parts."""

import itertools

import numpy as np
import pytest
import torch

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.loader import Loader, make_loader
from dmtl.data.loading.wrappers import Cached
from tests.data.conftest import Synthetic
from tests.data.test_loader import CROP, TASKS, equal, one_label


def stream(data, count, step=0, **options):
    options = dict(labels=one_label(data), transform=CROP, batch_size=6, seed=2) | options
    return list(itertools.islice(make_loader(data, **options).stream(step), count))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("balance", [False, True])
def test_processes_cover_the_samples_of_one_in_order(synthetic, world, balance):
    whole = stream(synthetic, 7, balance=balance)
    shares = [stream(synthetic, 7, balance=balance, rank=rank, world=world) for rank in range(world)]
    labels = one_label(synthetic)
    for batch, parts in zip(whole, zip(*shares), strict=True):
        assert [len(part) for part in parts] == [len(p) for p in np.array_split(range(6), world)]
        assert sum((part.ids for part in parts), []) == batch.ids
        assert torch.equal(torch.cat([part.image for part in parts]), batch.image)
        for task in TASKS:
            assert torch.equal(torch.cat([part.labels[task] for part in parts]), batch.labels[task])
            assert torch.equal(torch.cat([part.present[task] for part in parts]), batch.present[task])
        labelled = {task: sum(task in labels.tasks_of(i) for i in batch.ids) for task in TASKS}
        for part in (batch, *parts):
            assert (part.total, part.labelled) == (6, labelled) and part.skipped == []
            assert (part.epoch, part.position) == (batch.epoch, batch.position)


def test_a_process_reads_its_rows_only(synthetic):
    batches = stream(synthetic, 3, rank=1, world=2)
    assert sorted({index for index, _ in synthetic.asked}) == sorted(torch.cat([b.index for b in batches]))
    assert len(synthetic.asked) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=2, world=2), r"rank must be in 0\.\.1, got 2"),
        (dict(rank=-1), "rank must be an integer of at least 0, got -1"),
        (dict(world=0), "world must be an integer of at least 1, got 0"),
        (dict(world=5, batch_size=4), "batch_size must be at least the number of processes, 5, got 4"),
        (dict(world=2, shuffle=False), "drop_last must be True if world > 1"),
        (dict(balance=True, shuffle=False), "shuffle and drop_last must be True if balance is True"),
        (dict(balance=True, drop_last=False), "shuffle and drop_last must be True if balance is True"),
        (dict(skip_corrupt=-1), "skip_corrupt must be an integer of at least 0"),
    ],
)
def test_bad_arguments_are_named(synthetic, options, message):
    with pytest.raises(ValueError, match=f"make_loader: {message}"):
        make_loader(synthetic, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shards_of_an_evaluation(synthetic, world, workers):
    def loader():
        return make_loader(synthetic, batch_size=6, shuffle=False, workers=workers)

    whole = list(loader())
    shards = [loader().shard(rank, world) for rank in range(world)]
    parts = [list(shard) for shard in shards]
    assert [len(shard) for shard in shards] == [len(part) for part in parts]
    assert all(batch.position % world == rank for rank, part in enumerate(parts) for batch in part)
    merged = sorted(sum(parts, []), key=lambda batch: batch.position)
    assert all(equal(a, b) and a.total == b.total for a, b in zip(whole, merged, strict=True))


def test_a_shard_without_batches_ends(synthetic):
    shard = make_loader(synthetic, batch_size=20, shuffle=False).shard(1, 2)
    assert len(shard) == 0 and list(shard) == list(shard.stream()) == []
    with pytest.raises(ValueError, match=r"Loader.shard: rank must be in 0\.\.1, got 2"):
        shard.shard(2, 2)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 9])
def test_split(synthetic, size):
    batch = stream(synthetic, 1)[0]
    batch.skipped = ["x.png: damaged"]
    parts = batch.split(size)
    assert [len(p) for p in parts] == [min(size, 6 - start) for start in range(0, 6, size)]
    assert sum((p.ids for p in parts), []) == batch.ids
    assert sum((p.valid_size for p in parts), []) == batch.valid_size
    assert torch.equal(torch.cat([p.index for p in parts]), batch.index)
    assert torch.equal(torch.cat([p.image for p in parts]), batch.image)
    for task in TASKS:
        assert torch.equal(torch.cat([p.labels[task] for p in parts]), batch.labels[task])
        assert torch.equal(torch.cat([p.present[task] for p in parts]), batch.present[task])
    assert all((p.total, p.labelled, p.position) == (6, batch.labelled, batch.position) for p in parts)
    assert sum((p.skipped for p in parts), []) == ["x.png: damaged"]
    assert parts[0].image.data_ptr() == batch.image.data_ptr()


def test_split_needs_a_size(synthetic):
    with pytest.raises(ValueError, match="Batch.split: size must be at least 1, got 0"):
        stream(synthetic, 1)[0].split(0)


def test_workers_read_ahead(synthetic, monkeypatch):
    asked, chosen = [], Loader.chosen
    monkeypatch.setattr(Loader, "chosen", lambda s, *place: asked.append(place) or chosen(s, *place))
    next(make_loader(synthetic, transform=CROP, batch_size=4, workers=2).stream())
    assert (0, 3) in asked


@pytest.mark.parametrize("shuffle", [True, False])
def test_workers_share_a_cache_that_is_filled_once(shuffle):
    data = Synthetic()
    labels = one_label(data)
    loader = make_loader(Cached(data), labels, CROP, batch_size=4, shuffle=shuffle, workers=2)
    for _ in range(2):
        list(loader)
    assert sorted(data.asked) == sorted((i, t) for i, id in enumerate(data.ids) for t in labels.tasks_of(id))


def test_a_shard_reads_nothing_of_the_others():
    data = Synthetic()
    list(make_loader(Cached(data), transform=CROP, batch_size=4, shuffle=False, workers=1).shard(1, 2))
    assert {index for index, _ in data.asked} == {4, 5, 6, 7, 12, 13, 14, 15}


def test_images_without_labels_are_not_read_ahead():
    data = Synthetic()
    matrix = np.zeros((20, 1), bool)
    matrix[3:9] = True
    cached = Cached(data)
    list(make_loader(cached, LabelMatrix(data.ids, ["edge"], matrix), CROP, batch_size=2, workers=1))
    assert sorted(cached._kept) == [3, 4, 5, 6, 7, 8]
