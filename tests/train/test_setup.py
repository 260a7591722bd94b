"""From a configuration to data, labels, model, optimiser and learning rate."""

import pytest
import torch

from dmtl.data import LabelMatrix
from dmtl.devices import pick_device
from dmtl.errors import ConfigError, DataError
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.train.config import OptimConfig
from dmtl.train.setup import (
    evaluation_loader,
    learning_rate,
    model_for,
    open_data,
    optimizer_for,
    training_loader,
)


def test_learning_rate():
    config = OptimConfig(steps=100, warmup=10, lr=2.0, power=0.9)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 4) == pytest.approx(2.0 * 0.5 * 0.96**0.9)
    assert learning_rate(config, 10) == pytest.approx(2.0 * 0.9**0.9)
    assert learning_rate(config, 99) == pytest.approx(2.0 * 0.01**0.9) and learning_rate(config, 99) > 0
    assert learning_rate(OptimConfig(steps=10, warmup=0, lr=1.0, power=0.0), 9) == 1.0


@pytest.mark.parametrize("labels, counts", [("full", {3}), ("one-label", {1}), ("random-labels", {1, 2, 3})])
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


def test_baselines(config_for):
    data = open_data(config_for(data=dict(tasks=["edge"])).data)
    model = model_for(config_for(model=dict(diffusion="none")), data.tasks)
    assert isinstance(model, MultiTaskBaseline) and list(model.tasks) == ["edge"]


@pytest.mark.parametrize("name, cls", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizer_holds_every_parameter_once(config_for, name, cls):
    config = config_for(optim=dict(optimizer=name, weight_decay=0.25, mtdnet_lr=0.5))
    model = model_for(config, open_data(config.data).tasks)
    optimizer = optimizer_for(config.optim, model)
    assert type(optimizer) is cls
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    assert all(group["weight_decay"] == 0.25 for group in optimizer.param_groups)
    assert [group["factor"] for group in optimizer.param_groups] == [1.0, 0.5]


def test_loaders(config_for):
    config = config_for()
    data = open_data(config.data)
    batch = next(training_loader(config, data).stream(0))
    assert batch.image.shape == (4, 3, 32, 32) and set(batch.present) == set(data.tasks)
    shown = [set(data.labels.tasks_of(i)) for i in batch.ids]
    assert [{t for t in data.tasks if batch.present[t][row]} for row in range(4)] == shown
    (evaluation,) = evaluation_loader(data)
    assert evaluation.ids == ["i8", "i9"] and all(mask.all() for mask in evaluation.present.values())


def test_pick_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device must be one that works here, got 'cuda:99'"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match='device must be "auto", "cpu", "cuda" or "cuda:N", got .gpu.'):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
