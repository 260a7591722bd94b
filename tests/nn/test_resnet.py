"""Our ResNets carry torchvision's parameter names and shapes."""

import json

import pytest
import torch

from dmtl.nn.resnet import DEPTHS, BasicBlock, ResNet


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


@pytest.mark.parametrize("name, count", [("resnet18", 120), ("resnet34", 216)])
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
