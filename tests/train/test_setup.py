"""From a configuration to data, labels and model."""

import dataclasses
import itertools
import shutil

import pytest
import torch

from dmtl.data import LabelMatrix
from dmtl.data.folder.dataset import Folder
from dmtl.errors import ConfigError, DataError
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.runtime.devices import pick_device
from dmtl.runtime.distributed import World
from dmtl.train.config import OptimConfig
from dmtl.train.setup import evaluation_loader, model_for, open_data, training_loader


@pytest.mark.parametrize(
    ("labels", "counts"), [("full", {3}), ("one-label", {1}), ("random-labels", {1, 2, 3})]
)
def test_labels(config_for, labels, counts):
    data = open_data(config_for(data=dict(labels=labels)).data)
    assert set(data.labels.matrix.sum(1).tolist()) <= counts
    assert list(data.tasks) == ["semseg", "edge", "heat"] and len(data.train) == 8 and len(data.val) == 2


def test_label_seed_and_csv(config_for, tmp_path):
    first, second = (open_data(config_for(data=dict(label_seed=s)).data).labels for s in (0, 1))
    assert first != second
    second.write_csv(tmp_path / "labels.csv")
    assert open_data(config_for(data=dict(labels=str(tmp_path / "labels.csv"))).data).labels == second
    LabelMatrix.full(second.ids, second.tasks).write_csv(tmp_path / "full.csv")
    assert open_data(config_for(data=dict(labels=str(tmp_path / "full.csv"))).data).labels.matrix.all()


def test_bad_labels(config_for, tmp_path):
    with pytest.raises(ConfigError, match='data.labels must be "one-label", .*got .one_label.'):
        open_data(config_for(data=dict(labels="one_label")).data)
    with pytest.raises(DataError, match="nothing.csv"):
        open_data(config_for(data=dict(labels=str(tmp_path / "nothing.csv"))).data)
    with pytest.raises(DataError, match="semsge.*did you mean 'semseg'"):
        open_data(config_for(data=dict(tasks=["semsge"])).data)


def test_task_weights(config_for):
    data = open_data(config_for().data, {"edge": 3.5})
    assert data.tasks["edge"].weight == 3.5 and data.tasks["heat"].weight == data.train.tasks["heat"].weight
    with pytest.raises(
        ConfigError, match=r"optim\.task_weights\.sal is not a task of tiny \(tasks: semseg, edge, heat\)"
    ):
        open_data(config_for().data, {"sal": 1.0})


def test_model_depends_on_the_seed_alone(config_for):
    data = open_data(config_for().data)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = model_for(config_for(), data.tasks)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    b, c = model_for(config_for(), data.tasks), model_for(config_for(optim=dict(seed=4)), data.tasks)
    assert isinstance(a, DiffusionMTL) and list(a.tasks) == list(data.tasks)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.initial.embed.weight, c.initial.embed.weight)
    with pytest.raises(ConfigError, match="model.tasks must be the tasks of the data"):
        model_for(config_for(model=dict(tasks=[data.tasks["edge"].spec()])), data.tasks)


def test_encoder_weights_that_are_not_there_are_named_with_their_key(config_for):
    data = open_data(config_for().data)
    told = r'optim.backbone_weights: gone.pth: no such file, expected .*, or "" to start from random ones'
    with pytest.raises(ConfigError, match=told):
        model_for(config_for(optim=dict(backbone_weights="gone.pth")), data.tasks)
    model_for(config_for(optim=dict(backbone_weights="")), data.tasks)


def test_baselines(config_for):
    data = open_data(config_for(data=dict(tasks=["edge"])).data)
    model = model_for(config_for(model=dict(diffusion="none")), data.tasks)
    assert isinstance(model, MultiTaskBaseline) and list(model.tasks) == ["edge"]


def test_loaders(config_for):
    config = config_for()
    data = open_data(config.data)
    batch = next(training_loader(config, data).stream(0))
    assert batch.image.shape == (4, 3, 32, 32) and set(batch.present) == set(data.tasks)
    shown = [set(data.labels.tasks_of(i)) for i in batch.ids]
    assert [{t for t in data.tasks if batch.present[t][row]} for row in range(4)] == shown
    (evaluation,) = evaluation_loader(data)
    assert evaluation.ids == ["i8", "i9"] and all(mask.all() for mask in evaluation.present.values())


def test_loaders_of_several_processes(config_for):
    config = config_for(optim=dict(batch_size=6))
    data = open_data(config.data)
    (whole,) = training_loader(config, data)
    shares = [next(training_loader(config, data, world=World(rank, 4)).stream()) for rank in range(4)]
    assert [len(share) for share in shares] == [2, 2, 1, 1]
    assert sum((share.ids for share in shares), []) == whole.ids
    assert all((share.total, share.labelled) == (6, whole.labelled) for share in shares)
    with pytest.raises(ValueError, match="batch_size must be at least the number of processes, 7, got 6"):
        training_loader(config, data, world=World(0, 7))


def test_balanced_loader(config_for):
    config = config_for(data=dict(labels="one-label", balance=True), optim=dict(batch_size=3))
    data = open_data(config.data)
    batches = list(itertools.islice(training_loader(config, data).stream(), 10))
    assert all(batch.labelled == dict.fromkeys(data.tasks, 1) for batch in batches)
    with pytest.raises(DataError, match="balance needs at least 3 images .*, got batch_size = 2"):
        training_loader(dataclasses.replace(config, optim=OptimConfig(batch_size=2)), data)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_samples(config_for, images, tmp_path, workers):
    root = shutil.copytree(images, tmp_path / "damaged")
    for name in ("i3", "i8"):
        path = root / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:200])

    def batch(skip):
        config = config_for(
            data=dict(root=str(root), skip_corrupt=skip, workers=workers), optim=dict(batch_size=8)
        )
        return next(training_loader(config, open_data(config.data)).stream())

    left = batch(skip=1)
    assert (len(left), left.total) == (7, 8) and left.skipped[0].startswith(str(root / "images" / "i3.png"))
    with pytest.raises(DataError, match="i3.png"):
        batch(skip=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [False, True])
def test_samples_kept_on_disk(config_for, tmp_path, monkeypatch, workers, cache):
    options = dict(labels="one-label", cache=cache, workers=workers, cache_dir=str(tmp_path / "kept"))

    def epoch(**changes):
        config = config_for(data=options | changes)
        data = open_data(config.data)
        return [*training_loader(config, data), *evaluation_loader(data, workers=workers)]

    plain, first = epoch(cache_dir=None), epoch()
    monkeypatch.setattr(Folder, "read", lambda *_: pytest.fail("read again"))
    for other in (first, epoch()):
        assert all(
            torch.equal(a.image, b.image) and a.ids == b.ids for a, b in zip(plain, other, strict=True)
        )
        assert all(torch.equal(a.labels[t], b.labels[t]) for a, b in zip(plain, other) for t in a.labels)
    # 8 training images with one visible label each, 2 of validation with all three
    assert len(list((tmp_path / "kept").rglob("*.npz"))) == 8 * 2 + 2 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches(config_for, workers):
    config = config_for(data=dict(workers=workers))
    data = open_data(config.data)
    pairs = zip(training_loader(config, data, pin=True), training_loader(config, data), strict=True)
    for pinned, plain in pairs:
        assert pinned.image.is_pinned() and all(label.is_pinned() for label in pinned.labels.values())
        moved = pinned.to("cuda", non_blocking=True)
        assert torch.equal(moved.image.cpu(), plain.image) and moved.present["edge"].device.type == "cpu"
        assert (moved.total, moved.labelled) == (plain.total, plain.labelled)


def test_pick_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device must be one that works on this machine, got 'cuda:99'"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match='device must be "auto", "cpu", "cuda" or "cuda:N", got .gpu.'):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
