"""Our ResNets carry torchvision's parameter names and shapes."""

import json

import pytest
import torch

from dmtl.nn import resnet
from dmtl.nn.folding import fold_batch_norms_
from dmtl.nn.resnet import DEPTHS, BasicBlock, Pointwise, ResNet


def torchvision_entries(depths) -> dict[str, tuple[int, ...]]:
    """Names and shapes in torchvision's state dict of a ResNet of basic blocks, without `fc`."""

    def norm(name, channels):
        per_channel = {f"{name}.{k}": (channels,) for k in ("weight", "bias", "running_mean", "running_var")}
        return per_channel | {f"{name}.num_batches_tracked": ()}

    entries = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    before = 64
    for stage, (depth, channels) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            entries |= {f"{name}.conv1.weight": (channels, before, 3, 3)} | norm(f"{name}.bn1", channels)
            entries |= {f"{name}.conv2.weight": (channels, channels, 3, 3)} | norm(f"{name}.bn2", channels)
            if stage > 1 and block == 0:
                entries |= {f"{name}.downsample.0.weight": (channels, before, 1, 1)} | norm(
                    f"{name}.downsample.1", channels
                )
            before = channels
    return entries


@pytest.mark.parametrize(("name", "count"), [("resnet18", 120), ("resnet34", 216)])
def test_state_dict_is_torchvisions(name, count):
    with torch.device("meta"):
        state = ResNet(DEPTHS[name]).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == torchvision_entries(DEPTHS[name])
    assert len(state) == count


def test_published_backbone_has_the_same_keys(golden_dir):
    published = json.loads((golden_dir / "official_state_dict.json").read_text())
    expected = {
        k.removeprefix("backbone."): tuple(v) for k, v in published.items() if k.startswith("backbone.")
    }
    assert expected == torchvision_entries(DEPTHS["resnet18"])


def test_maps_have_the_declared_channels_and_strides():
    net = ResNet(DEPTHS["resnet18"], width=8)
    maps = net(torch.randn(2, 3, 64, 96))
    assert net.channels == [8, 16, 32, 64]
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]


def test_block_formula():
    block = BasicBlock(4, 8, stride=2).eval()
    x = torch.randn(2, 4, 10, 10)
    inner = torch.relu(block.bn1(torch.nn.functional.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    inner = block.bn2(torch.nn.functional.conv2d(inner, block.conv2.weight, padding=1))
    shortcut = block.downsample[1](torch.nn.functional.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), torch.relu(inner + shortcut))
    assert BasicBlock(8, 8).downsample is None


def folded(width: int = 8) -> ResNet:
    """A network without batch norms, whose shortcuts have a bias."""
    net = ResNet((1, 2, 1, 1), width).eval()
    for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
    return fold_batch_norms_(net)


@torch.no_grad()
def test_biases_of_shortcuts_are_merged():
    net, image = folded(), torch.randn(2, 3, 64, 64)
    expected = net(image)
    for block in net.layer2:
        block.merge_biases_()
    assert net.layer2[0].downsample[0].bias is None and net.layer3[0].downsample[0].bias is not None
    for found, want in zip(net(image), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cudnns_epilogues(monkeypatch):
    """As on a GPU, with compositions in cuDNN's place: each convolution with its bias, residual and ReLU is
    one call; no other is left."""
    calls = []

    def relu(x, weight, bias, stride, padding, dilation, groups):
        calls.append("relu")
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    def add_relu(x, weight, z, alpha, bias, *where):
        calls.append("add_relu")
        return (torch.conv2d(x, weight, bias, *where) + alpha * z).relu()

    net, image = folded(), torch.randn(2, 3, 64, 64)
    expected = net(image)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    monkeypatch.setattr(resnet, "_fused_by_cudnn", lambda device, dtype: True)
    for found, want in zip(net(image), expected, strict=True):
        torch.testing.assert_close(found, want)
    assert (calls.count("relu"), calls.count("add_relu")) == (6, 5)
    calls.clear()
    ResNet((1, 1, 1, 1), 8)(image)  # its norms are not folded
    assert not calls


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_cudnns_epilogues_on_a_gpu(dtype):
    net, image = folded(64), torch.randn(2, 3, 64, 64)
    expected = net.double()(image.double())
    net = net.to("cuda", dtype).to(memory_format=torch.channels_last)
    assert resnet._fused_by_cudnn(torch.device("cuda"), dtype)
    for found, want in zip(net(image.to("cuda", dtype)), expected, strict=True):
        assert (found.cpu().double() - want).norm() <= 30 * torch.finfo(dtype).eps * want.norm()


@pytest.mark.parametrize(
    ("channels", "size", "dtype", "served"),
    [((64, 64), 16, torch.float32, True), ((96, 64), 16, torch.float32, True),
     ((32, 32), 16, torch.float32, False), ((64, 64), 2, torch.float32, False),
     ((64, 64), 16, torch.float64, False)],
)  # fmt: skip
def test_where_the_operator_trains(monkeypatch, channels, size, dtype, served):
    """Large float32 layers go through `ops.conv3x3` in training mode, and agree with the
    library's."""
    from dmtl import ops
    from dmtl.nn.conv3x3 import Conv3x3

    calls = []
    original = ops.conv3x3
    monkeypatch.setattr(ops, "conv3x3", lambda *a, **k: calls.append(1) or original(*a, **k))
    torch.manual_seed(0)
    layer = Conv3x3(*channels).to(dtype)
    x = torch.randn(2, channels[0], size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    found = layer(x)
    assert bool(calls) == served
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    grad = torch.randn_like(expected)
    leaves = [x, layer.weight, layer.bias]
    for a, b in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        assert (a - b).norm() <= 1e-5 * b.norm()
    calls.clear()
    assert torch.equal(layer.eval()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.train().float()(x.float()).dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize(("channels", "size"), [((4, 8), (8, 8)), ((5, 3), (9, 7)), ((64, 128), (7, 8))])
def test_a_strided_pointwise_convolution(channels, size):
    """The same function and gradients as the strided convolution of float64, in training and inference."""
    ours = Pointwise(*channels, 1, 2, bias=False)
    x = torch.randn(3, channels[0], *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, exact = ours.weight.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    expected = torch.nn.functional.conv2d(exact, weight, stride=2)
    for _ in range(50):  # a write out of bounds shows itself in the heap, not in the result
        ours.weight.grad = x.grad = None
        ours(x).sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).double(), expected, rtol=1e-5, atol=1e-5)
