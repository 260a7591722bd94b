"""Batch norms folded into convolutions: in any network, only where that changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmtl.nn.backbone import make_backbone
from dmtl.nn.folding import fold_batch_norms_
from tests.models.cases import small_model
from tests.nn.test_efficientnet import randomise


class NormAct(nn.BatchNorm2d):
    """A norm that activates, built like timm's `BatchNormAct2d`."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Small(nn.Module):
    """Convolutions and norms in a row; `way` says how the data flows."""

    def __init__(self, way: str = "plain"):
        super().__init__()
        self.way = way
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), NormAct(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.bn3 = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        y = self.conv2(x)
        if self.way == "used twice":
            return [self.bn2(y) + y]
        if self.way == "changed in between":
            return [self.bn2(y.relu_())]
        if self.way == "two norms":
            return [self.bn2(y), self.bn3(y)]
        if self.way == "called twice":
            return [self.bn2(y), self.bn2(self.conv2(y))]
        if self.way == "shared norm":
            return [self.bn2(y), self.bn2(x)]
        return [self.bn2(y)]


def norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def difference(a, b) -> float:
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))


def folded(network: nn.Module) -> nn.Module:
    """A folded copy that computes the same function, on an image unlike the one that folding looks at."""
    own = fold_batch_norms_(copy.deepcopy(network))
    assert not own.training
    with torch.no_grad():
        for image in (torch.randn(2, 3, 96, 64), 3 * torch.rand(1, 3, 64, 64)):
            assert difference(own(image), network.eval()(image)) < 1e-5
            image = image.contiguous(memory_format=torch.channels_last)
            assert difference(own(image), network(image)) < 1e-5
    return own


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "efficientnet_lite0", "efficientnet_lite2"])
def test_own_encoders_keep_no_norm(name):
    torch.manual_seed(0)
    encoder = make_backbone(name, 8)
    randomise(encoder)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert norms(encoder) and not norms(folded(encoder))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_encoder_and_decoders_at_once(backbone):
    model = small_model(backbone=backbone)
    randomise(model.initial.backbone)
    own, image = fold_batch_norms_(copy.deepcopy(model.initial)), torch.randn(1, 3, 64, 96)
    assert norms(model.initial) and not norms(own)
    with torch.no_grad():
        *ours, encoded = own(image)
        *theirs, expected = model.initial(image)
    for mine, other in zip(ours, theirs, strict=True):
        assert difference(mine.values(), other.values()) < 1e-5
    assert difference([encoded], [expected]) < 1e-5


def test_a_norm_that_activates_leaves_its_activation():
    torch.manual_seed(0)
    network = Small()
    randomise(network)
    own = folded(network)
    assert norms(own) == [own.bn3]  # which nothing calls
    assert any(isinstance(part, nn.SiLU) for part in own.modules())
    assert own.conv1.bias is not None


@pytest.mark.parametrize(
    "way", ["used twice", "changed in between", "two norms", "called twice", "shared norm"]
)
def test_what_would_change_the_function_stays(way):
    """The first norm is folded all the same."""
    torch.manual_seed(0)
    network = Small(way)
    randomise(network)
    own = folded(network)
    assert norms(own) == [own.bn2, own.bn3] and own.conv2.weight is not network.conv2.weight
    assert torch.equal(own.conv2.weight, network.conv2.weight)


def test_norms_without_statistics_and_computed_weights_stay():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(inplace=True),
    )  # fmt: skip
    network[3].running_mean.normal_()
    network[5].running_mean.normal_()
    own = folded(network)
    assert [index for index, part in enumerate(own) if isinstance(part, _BatchNorm)] == [1, 3]


def test_twice_is_once():
    network = fold_batch_norms_(make_backbone("resnet18", 8))
    before = copy.deepcopy(network.state_dict())
    after = fold_batch_norms_(network).state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)


def test_under_autocast_and_in_double():
    """Mixed precision around it does not make the check reject anything; float64 is checked as float64."""
    network = make_backbone("efficientnet_lite0")
    randomise(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert not norms(fold_batch_norms_(copy.deepcopy(network)))
    wide = network.double().eval()
    own = fold_batch_norms_(copy.deepcopy(wide))
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert not norms(own) and difference(own(image), wide(image)) < 1e-12
