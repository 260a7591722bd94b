"""Encoder weights in torchvision's format, with its classifier, load into the initial network."""

import pytest
import torch
from safetensors.torch import save_file

from dmtl.errors import CheckpointError
from dmtl.models import load_backbone
from dmtl.nn.backbone import make_backbone


@pytest.fixture
def imagenet_state():
    """A state dict with torchvision's names: ours and the classifier."""
    torch.manual_seed(1)
    state = make_backbone("resnet18", 8).state_dict()
    return state | {"fc.weight": torch.randn(1000, 64), "fc.bias": torch.randn(1000)}


@pytest.mark.parametrize("form", ["pth", "entry", "old", "safetensors"])
def test_loads_every_tensor(tmp_path, imagenet_state, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(imagenet_state, path)
    elif form == "old":
        torch.save({k: v for k, v in imagenet_state.items() if "num_batches" not in k}, path)
    else:
        torch.save({"state_dict": imagenet_state} if form == "entry" else imagenet_state, path)
    backbone = make_backbone("resnet18", 8)
    load_backbone(backbone, path)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, imagenet_state[name]), name


def test_another_network_is_refused(tmp_path, imagenet_state):
    torch.save(imagenet_state, tmp_path / "w.pth")
    message = r"w\.pth: .*conv1\.weight: shape \(8, 3, 7, 7\), expected \(16, 3, 7, 7\)"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(make_backbone("resnet18", 16), tmp_path / "w.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.pth: no such file"):
        load_backbone(make_backbone("resnet18", 8), tmp_path / "nothing.pth")
