import itertools

import numpy as np
import pytest
import torch

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.loader import make_loader
from dmtl.data.loading.transforms import eval_transform, train_transform
from dmtl.data.loading.wrappers import Cached, Resized, Subset
from dmtl.errors import DataError
from tests.data.conftest import Synthetic

TASKS = ["semseg", "edge", "normals", "depth"]
CROP = train_transform((16, 16))


def equal(a, b) -> bool:
    return (
        a.ids == b.ids
        and a.valid_size == b.valid_size
        and (a.epoch, a.position) == (b.epoch, b.position)
        and torch.equal(a.index, b.index)
        and torch.equal(a.image, b.image)
        and all(
            torch.equal(a.labels[t], b.labels[t]) and torch.equal(a.present[t], b.present[t])
            for t in a.labels
        )
    )


def one_label(data):
    return LabelMatrix.one_label(data.ids, list(data.tasks), seed=0)


def test_a_batch_keeps_its_promises(synthetic):
    labels = one_label(synthetic)
    loader = make_loader(synthetic, labels, CROP, batch_size=6)
    assert len(loader) == 3
    for position, batch in enumerate(loader):
        assert len(batch) == 6 and batch.image.shape == (6, 3, 16, 16) and batch.image.dtype == torch.float32
        assert batch.ids == [synthetic.ids[i] for i in batch.index] and batch.index.dtype == torch.int64
        assert (batch.epoch, batch.position) == (0, position)
        assert list(batch.labels) == TASKS and len(batch.valid_size) == 6
        for task in TASKS:
            k, ignore = synthetic.tasks[task].label_channels, synthetic.tasks[task].ignore
            assert batch.labels[task].shape == (6, k, 16, 16)
            assert batch.present[task].tolist() == [task in labels.tasks_of(i) for i in batch.ids]
            assert (batch.labels[task][~batch.present[task]] == ignore).all()
            assert (batch.labels[task][batch.present[task]] != ignore).flatten(1).any(1).all()


def test_hidden_labels_are_never_read(synthetic):
    labels = one_label(synthetic)
    list(make_loader(synthetic, labels, CROP, batch_size=4))
    assert len(synthetic.asked) == 20
    assert all(task in labels.tasks_of(synthetic.ids[index]) for index, task in synthetic.asked)


def test_same_batches_with_any_number_of_workers(synthetic):
    runs = [
        list(
            itertools.islice(
                make_loader(
                    synthetic, one_label(synthetic), CROP, batch_size=3, seed=5, workers=workers
                ).stream(4),
                5,
            )
        )
        for workers in (0, 1, 2)
    ]
    assert [(b.epoch, b.position) for b in runs[0]] == [(0, 4), (0, 5), (1, 0), (1, 1), (1, 2)]
    for run in runs[1:]:
        assert all(equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_any_position_can_be_the_first(synthetic):
    def options(**more):
        return dict(labels=one_label(synthetic), transform=CROP, batch_size=3, seed=1, **more)

    whole = list(itertools.islice(make_loader(synthetic, **options()).stream(), 14))
    for step in (0, 1, 5, 6, 11):
        again = list(itertools.islice(make_loader(synthetic, **options()).stream(step), 14 - step))
        assert all(equal(a, b) for a, b in zip(whole[step:], again, strict=True))
    part = list(make_loader(synthetic, **options(epoch=1, start=2)))
    assert all(equal(a, b) for a, b in zip(whole[8:12], part, strict=True))


def test_epochs_differ_and_each_has_every_image_once(synthetic):
    loader = make_loader(synthetic, batch_size=4, seed=3)
    orders = [loader.order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2] and loader.order(1).tolist() == orders[1]
    assert make_loader(synthetic, batch_size=4, seed=4).order(0).tolist() != orders[0]


def test_augmentation_differs_between_epochs(synthetic):
    loader = make_loader(Subset(synthetic, [0]), transform=CROP, batch_size=1)
    first, second = itertools.islice(loader.stream(), 2)
    assert not torch.equal(first.image, second.image)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_not_touched(synthetic, workers):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(make_loader(synthetic, one_label(synthetic), CROP, batch_size=4, workers=workers))
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


def test_evaluation_keeps_order_pads_and_says_so():
    data = Synthetic(count=5, sizes=((10, 12), (14, 8)))
    batches = list(make_loader(data, batch_size=2, shuffle=False))
    assert [b.ids for b in batches] == [["i000", "i001"], ["i002", "i003"], ["i004"]]
    assert batches[0].image.shape == (2, 3, 14, 12) and batches[0].valid_size == [(10, 12), (14, 8)]
    assert (batches[0].labels["depth"][0, :, 10:] == 255).all()
    assert (batches[0].image[1, :, :, 8:] == 0).all()
    assert batches[2].image.shape == (1, 3, 10, 12) and batches[2].valid_size == [(10, 12)]
    assert all(batch.present[task].all() for batch in batches for task in TASKS)


@pytest.mark.parametrize("frame", [None, (17, 13)])
def test_padding_can_be_taken_off_again(frame):
    """In the middle of a frame or below and to the right, also in parts of a batch."""
    data = Synthetic(count=5, sizes=((10, 12), (14, 8)))
    loader = make_loader(data, transform=eval_transform(frame=frame), batch_size=3, shuffle=False)
    for part in (part for batch in loader for part in batch.split(2)):
        for row, index in enumerate(part.index.tolist()):
            own = data.read(index).labels["edge"]
            assert torch.equal(part.labels["edge"][row][:, *part.unpadded(row)], own)
            assert part.valid_at[row] == (
                ((17 - own.shape[1]) // 2, (13 - own.shape[2]) // 2) if frame else (0, 0)
            )


def test_images_without_a_label_are_left_out_of_training_only(synthetic):
    matrix = np.zeros((20, 1), bool)
    matrix[3:9] = True
    labels = LabelMatrix(synthetic.ids, ["edge"], matrix)
    train = make_loader(synthetic, labels, CROP, batch_size=2)
    assert len(train) == 3 and sorted(i for b in train for i in b.index.tolist()) == list(range(3, 9))
    assert len(make_loader(synthetic, labels, batch_size=2, shuffle=False)) == 10
    with pytest.raises(DataError, match="has no image with a visible label of edge"):
        make_loader(synthetic, LabelMatrix(synthetic.ids, ["edge"], np.zeros((20, 1))))
    with pytest.raises(DataError, match="has 6 labelled images, expected at least batch_size = 7"):
        make_loader(synthetic, labels, batch_size=7)


def test_tasks_are_matched_by_name(synthetic):
    labels = LabelMatrix.full([*synthetic.ids[::-1], "other"], ["depth", "edge", "unknown"])
    batch = next(iter(make_loader(synthetic, labels, CROP, batch_size=4)))
    assert list(batch.labels) == ["edge", "depth"]
    batch = next(iter(make_loader(synthetic, labels, CROP, batch_size=4, tasks=["depth"])))
    assert list(batch.labels) == ["depth"]
    with pytest.raises(DataError, match="unknown task 'dept', did you mean 'depth'"):
        make_loader(synthetic, tasks=["dept"])
    with pytest.raises(DataError, match="no row for 20 of 20 images"):
        make_loader(synthetic, LabelMatrix.full(["x"], ["edge"]))


class Broken(Synthetic):
    def read(self, index, tasks=None):
        if index == 7:
            raise DataError("file.png: damaged, expected an image")
        return super().read(index, tasks)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_it_was_raised(workers):
    with pytest.raises(DataError) as error:
        list(make_loader(Broken(), transform=CROP, batch_size=4, workers=workers))
    assert str(error.value) == "file.png: damaged, expected an image"


@pytest.mark.parametrize(
    "option", [{"batch_size": 0}, {"workers": -1}, {"seed": -1}, {"start": -2}, {"epoch": 1.5}]
)
def test_bad_arguments_are_named(synthetic, option):
    with pytest.raises(ValueError, match=f"make_loader: {next(iter(option))} must be an integer"):
        make_loader(synthetic, **option)


def test_cache_reads_each_label_once_and_hides_what_is_hidden(synthetic):
    labels = one_label(synthetic)
    plain = list(itertools.islice(make_loader(Synthetic(), labels, CROP, batch_size=4).stream(), 10))
    cached = Cached(synthetic)
    again = list(itertools.islice(make_loader(cached, labels, CROP, batch_size=4).stream(), 10))
    assert all(equal(a, b) for a, b in zip(plain, again, strict=True))
    assert len(synthetic.asked) == len(set(synthetic.asked)) == 20
    shown = labels.tasks_of("i000")
    assert cached.read(0, []).labels == {} and list(cached.read(0, shown).labels) == shown
    assert list(cached.read(0).labels) == TASKS and sorted(t for i, t in synthetic.asked if i == 0) == sorted(
        TASKS
    )


def test_cache_keeps_to_its_limit():
    data = Synthetic(count=10, tasks=("edge",))
    size = 4 * 24 * 32
    cached = Cached(data, limit_bytes=3 * size).warm()
    assert cached.used_bytes == 3 * size
    asked = len(data.asked)
    cached.warm()
    assert len(data.asked) == asked + 1


def test_warm_reads_only_what_is_shown(synthetic):
    labels = one_label(synthetic)
    Cached(Resized(synthetic, (12, 16))).warm(labels)
    assert len(synthetic.asked) == 20 and all(
        t in labels.tasks_of(synthetic.ids[i]) for i, t in synthetic.asked
    )


def test_resized_and_subset(synthetic):
    data = Subset(Resized(synthetic, (12, 16)), [4, 2])
    assert data.ids == ["i004", "i002"] and data.read(1).size == (12, 16) and data.read(1).id == "i002"
    assert data.available().ids == data.ids


def test_to_moves_everything_but_presence(synthetic):
    batch = next(iter(make_loader(synthetic, one_label(synthetic), CROP, batch_size=4))).to("meta")
    assert batch.image.device.type == batch.index.device.type == batch.labels["edge"].device.type == "meta"
    assert batch.present["edge"].device.type == "cpu"
