"""A model with tasks of all kinds and random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.models import ModelConfig, create_model
from dmtl.tasks import make_task


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    tasks = [make_task("semseg", classes=["sky", "house", "tree"]), make_task("depth"), make_task("normals")]
    specs = [task.spec() for task in (*tasks, make_task("edge"))]
    return ModelConfig(tasks=specs, backbone_width=8, width=16, steps=2, image_size=(32, 40))


@pytest.fixture(scope="session")
def model(config):
    torch.manual_seed(0)
    model = create_model(config)
    for head in model.mtdnet.heads.modules():  # so that steps and samples differ
        if isinstance(head, torch.nn.Conv2d):
            torch.nn.init.normal_(head.weight)
    return model.eval()


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    coarse.resize((100, 70), Image.Resampling.BICUBIC).save(tmp_path / "street.png")
    return tmp_path / "street.png"
