"""Metrics of a model on a data set."""

import pytest
import torch

from dmtl.data import eval_transform, make_loader, open_dataset
from dmtl.diffusion import CounterNoise
from dmtl.infer.engine import Engine
from dmtl.models import ModelConfig, build_model
from dmtl.train.distributed import World
from dmtl.train.evaluate import evaluate, primary_metrics


@pytest.fixture(scope="module")
def dataset(images):
    return open_dataset(images, "train")


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    specs = [task.spec() for task in dataset.tasks.values()]
    return build_model(
        ModelConfig(
            tasks=specs, width=16, heads=2, backbone_width=4, blocks=1, decoder_blocks=1, beta_end=0.2
        )
    )


def batches(dataset, size: int, labels=None):
    return make_loader(dataset, labels, eval_transform(), batch_size=size, shuffle=False)


def test_metrics_do_not_depend_on_the_batches(model, dataset):
    one, many = (evaluate(model, batches(dataset, size), initial=True) for size in (1, 8))
    assert list(one) == ["semseg", "initial/semseg", "edge", "initial/edge", "heat", "initial/heat"]
    for key in one:
        assert one[key] == pytest.approx(many[key], rel=1e-3, abs=1e-3), key


def test_metrics_are_those_of_the_decoded_maps(model, dataset):
    out = evaluate(model, batches(dataset, 4))
    metric = dataset.tasks["heat"].new_metric()
    model.eval()
    with torch.no_grad():
        for batch in batches(dataset, 8):
            logits = model(batch.image, noise=CounterNoise(0, batch.index)).final["heat"]
            metric.update(dataset.tasks["heat"].decode(logits), batch.labels["heat"])
    assert out["heat"] == pytest.approx(metric.compute(), rel=1e-3)


def test_options(model, dataset):
    done = []
    model.train()
    out = evaluate(model, batches(dataset, 3), tasks=["edge"], steps=1, on_batch=done.append)
    assert list(out) == ["edge"] and done == [3, 3, 2] and model.training
    assert out["edge"] != evaluate(model, batches(dataset, 3), tasks=["edge"], steps=1, seed=1)["edge"]
    model.eval()
    evaluate(model, batches(dataset, 8), tasks=["edge"])
    assert not model.training


def test_the_mode_is_restored_after_an_error(model):
    model.train()
    with pytest.raises(AttributeError):
        evaluate(model, [None])
    assert model.training


def test_evaluation_does_not_move_the_statistics(model, dataset):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, batches(dataset, 4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_primary_metrics(model, dataset):
    metrics = evaluate(model, batches(dataset, 4), initial=True)
    primary = primary_metrics(metrics, model.tasks)
    assert set(primary) == {"semseg", "edge", "heat"}
    assert primary["semseg"] == ("mIoU", metrics["semseg"]["mIoU"], True)
    assert primary["heat"][2] is False


def test_shares_add_up_to_the_bit(model, dataset):
    """Each of three processes reads every third batch, and only those."""
    from dmtl.train import evaluate as room

    alone = evaluate(model, batches(dataset, 1), initial=True)
    states, seen = [], []
    for rank in range(3):
        sums = room._Sums(World())
        for batch in room._share(batches(dataset, 1), World(rank, 3)):
            seen.append(batch.position)
            options = dict(noise=CounterNoise(0, batch.index))
            with torch.inference_mode():
                sums.add(room._scores(model.eval(), batch, list(model.tasks), options, True))
        states.append((sums.counts, sums.parts))
    assert seen == [0, 3, 6, 1, 4, 7, 2, 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "gathered", lambda value: states)
        meters = room._Sums(World(0, 3)).meters(model.tasks)
    for (name, kind), meter in meters.items():
        assert repr(meter.compute()) == repr(alone[name if kind == "final" else f"initial/{name}"])


def test_uncertainty_is_scored_over_all_batches(model, dataset):
    engine = Engine(model, samples=2)
    one, many = (evaluate(engine, batches(dataset, size), tasks=["edge", "heat"]) for size in (8, 3))
    for task in ("edge", "heat"):
        assert one[task]["uncertainty_auroc"] == pytest.approx(many[task]["uncertainty_auroc"], abs=1e-3)
