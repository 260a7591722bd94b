"""The optimiser's groups, frozen parts, and learning rates against torch's own schedulers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, PolynomialLR

from dmtl.errors import ConfigError
from dmtl.nn.resnet import ResNet
from dmtl.train.config import OptimConfig
from dmtl.train.optim import (
    _stage_of,
    freeze,
    optimizer_for,
    schedule,
    set_train,
    total_steps,
)
from tests.models.cases import small_model

# groups


def summary(optimizer) -> list[tuple]:
    return [(g["name"], g["factor"], len(g["params"])) for g in optimizer.param_groups]


@pytest.mark.parametrize(("name", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_default_groups(name, cls):
    model = small_model()
    config = OptimConfig(optimizer=name, weight_decay=0.25, mtdnet_lr=0.5)
    optimizer = optimizer_for(config, model)
    assert type(optimizer) is cls and optimizer.defaults["fused"]
    assert [(g["name"], g["factor"]) for g in optimizer.param_groups] == [("initial", 1.0), ("mtdnet", 0.5)]
    for group, part in zip(optimizer.param_groups, (model.initial, model.mtdnet), strict=True):
        assert list(map(id, group["params"])) == list(map(id, part.parameters()))
        assert group["weight_decay"] == 0.25


def test_state_without_names_still_loads():
    """Checkpoints from before groups had names: two groups, the same order of parameters."""
    model = small_model()
    old = torch.optim.AdamW(
        [
            {"params": list(model.initial.parameters()), "factor": 1.0},
            {"params": list(model.mtdnet.parameters()), "factor": 0.1},
        ],
        fused=True,
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    old.step()
    new = optimizer_for(OptimConfig(), model)
    new.load_state_dict(old.state_dict())
    for p in model.parameters():
        assert torch.equal(new.state[p]["exp_avg"], old.state[p]["exp_avg"])


def test_baseline_has_one_group():
    model = small_model(diffusion="none")
    assert summary(optimizer_for(OptimConfig(), model)) == [("initial", 1.0, len(list(model.parameters())))]


def test_layer_decay_from_the_last_stage_backwards():
    model = small_model()
    optimizer = optimizer_for(OptimConfig(backbone_lr=0.5, layer_decay=0.1, mtdnet_lr=2.0), model)
    backbone = model.initial.backbone
    expected = {
        "initial.backbone.stem": (0.5e-4, [*backbone.conv1.parameters(), *backbone.bn1.parameters()]),
        "initial.backbone.layer1": (0.5e-3, list(backbone.layer1.parameters())),
        "initial.backbone.layer2": (0.5e-2, list(backbone.layer2.parameters())),
        "initial.backbone.layer3": (0.5e-1, list(backbone.layer3.parameters())),
        "initial.backbone.layer4": (0.5, list(backbone.layer4.parameters())),
        "initial": (1.0, [p for n, p in model.initial.named_parameters() if not n.startswith("backbone.")]),
        "mtdnet": (2.0, list(model.mtdnet.parameters())),
    }
    assert [g["name"] for g in optimizer.param_groups] == list(expected)
    for group in optimizer.param_groups:
        factor, parameters = expected[group["name"]]
        assert group["factor"] == pytest.approx(factor)
        assert list(map(id, group["params"])) == list(map(id, parameters))


def test_plain_encoder_factor_and_extra_parameters():
    model, s = small_model(), nn.Parameter(torch.zeros(1))
    optimizer = optimizer_for(OptimConfig(backbone_lr=0.25, weight_decay=0.5), model, iter([s]))
    encoder = len(list(model.initial.backbone.parameters()))
    names = [(g["name"], g["factor"], g["weight_decay"]) for g in optimizer.param_groups]
    assert names == [
        ("initial.backbone", 0.25, 0.5),
        ("initial", 1.0, 0.5),
        ("mtdnet", 0.1, 0.5),
        ("weighting", 1.0, 0.0),
    ]
    assert len(optimizer.param_groups[0]["params"]) == encoder
    assert optimizer.param_groups[-1]["params"] == [s]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, [*model.parameters(), s]))


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        ("conv1.weight bn1.bias layer1.0.conv1.weight layer2.0.bn1.bias", "stem stem layer1 layer2"),
        (
            "net.stem_0.weight net.stages_0.blocks.0.gamma net.stages_1.downsample.0.bias net.norm.weight",
            "stem stages.0 stages.1 stages.1",
        ),
        ("net.patch_embed.proj.weight net.layers_0.a.b net.layers_3.a.b", "stem layers.0 layers.3"),
        ("net.model.cls_token net.model.blocks.0.a net.model.blocks.10.a", "stem blocks.0 blocks.10"),
        ("net.stem.conv.weight net.s1.b1.conv.weight net.s2.b1.conv.weight", "stem s1 s2"),
        ("net.features_0.weight net.features_3.weight", ""),  # no stages
        ("net.conv1.weight net.layer1.0.a net.stages_2.0.a", ""),  # two kinds
        ("net.layer1.0.a net.layer1.1.a", ""),  # one stage
        ("net.layer2.0.a net.layer1.0.a", ""),  # not in order
    ],
)
def test_stages_of_encoders(names, stages):
    assert _stage_of(names.split()) == (stages.split() or [""] * len(names.split()))


def test_encoder_without_stages_has_the_plain_factor():
    model = small_model(diffusion="none")
    channels = model.initial.backbone.channels
    model.initial.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model.initial.backbone.channels = channels
    optimizer = optimizer_for(OptimConfig(backbone_lr=0.5, layer_decay=0.1), model)
    assert summary(optimizer)[0] == ("initial.backbone", 0.5, 4)


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (3, 4, 6, 3)])
def test_own_encoders_have_four_stages(depths):
    names = [name for name, _ in ResNet(depths, 4).named_parameters()]
    assert list(dict.fromkeys(_stage_of(names))) == ["stem", "layer1", "layer2", "layer3", "layer4"]


# frozen parts


def steps(model, config, count=3):
    """A few optimiser steps that move whatever can be moved."""
    optimizer = optimizer_for(config, model)
    torch.manual_seed(0)
    for _ in range(count):
        set_train(model, config)
        optimizer.zero_grad()
        prediction = model(torch.randn(2, 3, 64, 64), labelled={t: torch.arange(2) for t in model.tasks})
        sum(m.square().mean() for m in (prediction.final | prediction.initial).values()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["factor"]
        optimizer.step()


def changed(model, config) -> set[str]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, config)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_part_keeps_weights_and_statistics():
    model = small_model(diffusion="none")
    stay = ("initial.backbone.conv1", "initial.backbone.bn1", "initial.backbone.layer2", "initial.heads.edge")
    config = OptimConfig(freeze=[stay[0], stay[1] + ".", *stay[2:]])
    model.initial.backbone.layer2.zero_grad()
    moved = changed(model, config)
    kept = set(model.state_dict()) - moved
    assert kept == {name for name in model.state_dict() if name.startswith(stay)}
    assert any(name.endswith("running_var") for name in kept & set(model.state_dict()))
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(stay))


def test_frozen_statistics_keep_weights_trained():
    model = small_model(diffusion="none")
    moved = changed(model, OptimConfig(freeze_bn=True))
    statistics = {name for name, _ in model.named_buffers() if "running" in name or "num_batches" in name}
    assert statistics and moved == {name for name, _ in model.named_parameters()}


def test_nothing_frozen_moves_everything():
    model = small_model(diffusion="none")
    assert changed(model, OptimConfig()) == set(model.state_dict())


def test_frozen_names_and_groups():
    model = small_model()
    config = OptimConfig(freeze=["initial"])
    names = freeze(config, model)
    assert names == [name for name, _ in model.named_parameters() if name.startswith("initial.")]
    assert [g["name"] for g in optimizer_for(config, model).param_groups] == ["mtdnet"]
    assert all(p.requires_grad for p in model.mtdnet.parameters())


def test_single_parameter_can_be_frozen():
    model = small_model()
    assert freeze(OptimConfig(freeze=["initial.embed.bias"]), model) == ["initial.embed.bias"]
    assert not model.initial.embed.bias.requires_grad and model.initial.embed.weight.requires_grad


def test_an_entry_ends_where_a_name_ends():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.initial = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2)})

    assert freeze(OptimConfig(freeze=["initial.layer1"]), Model()) == [
        "initial.layer1.weight",
        "initial.layer1.bias",
    ]


@pytest.mark.parametrize(
    ("entry", "near"),
    [
        ("initial.bakbone", "initial.backbone"),
        ("initial.backbone.layer", r"initial.backbone.layer\d"),
        ("initial.backbone.layer1.0.conv1.wieght", "initial.backbone.layer1.0.conv1.weight"),
        ("mtd_net", "mtdnet"),
    ],
)
def test_unknown_part(entry, near):
    with pytest.raises(ConfigError, match=rf"optim\.freeze must name .*got '{entry}'; did you mean '{near}'"):
        freeze(OptimConfig(freeze=[entry]), small_model())


def test_useless_freezing():
    with pytest.raises(ConfigError, match="optim.freeze must name parts of the model"):
        freeze(OptimConfig(freeze=[""]), small_model())
    with pytest.raises(ConfigError, match="optim.freeze must leave something to train"):
        optimizer_for(OptimConfig(freeze=["initial", "mtdnet"]), small_model())


# learning rates


def torch_rates(scheduler_of, count: int, lr: float = 1.0) -> list[float]:
    """The learning rates of one of torch's schedulers, read before each of `count` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = scheduler_of(optimizer), []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(count: int, steps_per_epoch: int = 1, **options) -> list[float]:
    factor = schedule(OptimConfig(**options), steps_per_epoch)
    return [factor(step) for step in range(count)]


@pytest.mark.parametrize(
    ("options", "scheduler_of"),
    [
        (dict(schedule="poly", power=0.9), lambda o: PolynomialLR(o, 50, 0.9)),
        (dict(schedule="poly", power=2.0), lambda o: PolynomialLR(o, 50, 2.0)),
        (dict(schedule="cosine"), lambda o: CosineAnnealingLR(o, 50)),
        (dict(schedule="cosine", final_lr=0.1), lambda o: CosineAnnealingLR(o, 50, eta_min=0.1)),
        (dict(schedule="step"), lambda o: MultiStepLR(o, [30, 40])),
        (
            dict(schedule="step", milestones=[0.5, 0.1, 0.5], gamma=0.5),
            lambda o: MultiStepLR(o, [25, 5, 25], 0.5),
        ),
        (dict(schedule="constant", warmup=7), lambda o: LinearLR(o, 1 / 7, total_iters=6)),
    ],
)
def test_shapes_are_those_of_torch(options, scheduler_of):
    ours = rates(50, steps=50, **(dict(warmup=0) | options))
    assert ours == pytest.approx(torch_rates(scheduler_of, 50), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("options", [{}, dict(steps=1200, lr=3e-4), dict(warmup=0, power=0.5, steps=77)])
def test_default_is_the_rate_of_earlier_runs(options):
    """lr warm (1 - step / steps)^power in that order: to the last bit after the warm-up, and in the
    optimiser's float32 everywhere."""
    config = OptimConfig(**options)
    factor = schedule(config, 13)
    for step in range(config.steps):
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        expected = config.lr * warm * (1 - step / config.steps) ** config.power
        assert np.float32(config.lr * factor(step)) == np.float32(expected)
        assert config.lr * factor(step) == expected or step < config.warmup


def test_published_schedule():
    """Adam 2e-5, poly 0.9 stepped once per epoch over 100 epochs, 833 steps each (4,998 images by 6)."""
    config = OptimConfig(
        lr=2e-5, power=0.9, epochs=100, schedule_every="epoch", warmup=0, batch_size=6, optimizer="adam"
    )
    assert total_steps(config, 833) == 83_300
    factor = schedule(config, 833)
    rate = [config.lr * factor(833 * epoch) for epoch in range(100)]
    golden = {0: 2e-5, 1: 1.981991e-5, 50: 1.0717735e-5, 90: 2.517851e-6, 99: 3.169786e-7}
    assert {epoch: rate[epoch] for epoch in golden} == pytest.approx(golden, rel=1e-6)
    assert rate == pytest.approx(torch_rates(lambda o: PolynomialLR(o, 100, 0.9), 100, 2e-5), rel=1e-9)
    for epoch in (0, 1, 57, 99):
        within = {factor(833 * epoch + step) for step in (0, 1, 400, 832)}
        assert within == {(1 - epoch / 100) ** 0.9}


def test_warmup_is_per_step_where_the_schedule_is_per_epoch():
    options = dict(epochs=5, schedule_every="epoch", power=1.0, warmup=6)
    assert rates(20, 4, **options) == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6, 4 / 6, 0.8 * 5 / 6, 0.8, 0.8, 0.8, *[0.6] * 4, *[0.4] * 4, *[0.2] * 4]
    )


def test_floor_and_end():
    for shape in ("poly", "cosine"):
        options = dict(steps=10, schedule=shape, final_lr=0.25, warmup=0)
        assert rates(1, **options) == [1.0]
        factor = schedule(OptimConfig(**options), 3)
        plain = schedule(OptimConfig(**(options | dict(final_lr=0.0))), 3)
        assert factor(7) == pytest.approx(0.25 + 0.75 * plain(7))
        assert factor(10) == factor(12) == 0.25 and plain(12) == 0.0
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
        schedule(OptimConfig(), 0)


def test_milestones_meet_their_steps():
    """0.55 of 100 steps is step 55, although 0.55 * 100 > 55 in floating point; per epoch, the next epoch."""
    assert rates(100, steps=100, schedule="step", milestones=[0.55], warmup=0).index(0.1) == 55
    options = dict(epochs=10, schedule="step", schedule_every="epoch", milestones=[0.55], warmup=0)
    assert rates(100, 10, **options).index(0.1) == 60


def test_total_steps():
    assert total_steps(OptimConfig(steps=7), 100) == 7
    assert total_steps(OptimConfig(steps=7, epochs=3), 100) == 300
