"""Models by name: tasks in every form, options, the encoder's weights."""

import pytest
import torch

from dmtl.errors import ConfigError
from dmtl.models import DiffusionMTL, ModelConfig, MultiTaskBaseline, create_model, pretrained_source
from tests.models.cases import TASKS, small_config, small_model

SMALL = dict(width=16, backbone_width=4, blocks=1, decoder_blocks=1)


def test_names_choose_the_class():
    assert type(create_model("diffusionmtl", TASKS, **SMALL)) is DiffusionMTL
    assert type(create_model("mtl", TASKS, **SMALL)) is MultiTaskBaseline
    assert (
        create_model("diffusionmtl", TASKS, diffusion="prediction", **SMALL).config.diffusion == "prediction"
    )
    for name, options, message in (
        ("diffusionmlt", {}, "model must be one of diffusionmtl, mtl, got 'diffusionmlt'; did you mean"),
        ("mtl", {"diffusion": "feature"}, 'diffusion must be "none" for MultiTaskBaseline'),
        ("diffusionmtl", {"diffusion": "none"}, 'must be "feature" or "prediction" for DiffusionMTL'),
        ("mtl", {"widht": 8}, "widht is not a known key; did you mean 'model.width'"),
    ):
        with pytest.raises(ConfigError, match=message):
            create_model(name, TASKS, **options)
    with pytest.raises(ConfigError, match="at least one task"):
        create_model("mtl", **SMALL)


def test_tasks_in_every_form():
    """Of a data set, objects, specifications, names."""
    specs = [task.spec() for task in TASKS.values()]
    for tasks in (TASKS, TASKS.values(), list(TASKS.values()), specs, iter(specs)):
        assert create_model("mtl", tasks, **SMALL).config == ModelConfig(
            tasks=specs, diffusion="none", **SMALL
        )
    mixed = create_model("mtl", [TASKS["heat"], "depth", specs[0]], **SMALL)
    assert list(mixed.tasks) == ["heat", "depth", "semseg"] and mixed.tasks["heat"] == TASKS["heat"]
    assert small_config().to_dict() == ModelConfig.from_dict(small_config().to_dict()).to_dict()


def test_a_configuration_with_options():
    config = small_config(diffusion="none")
    model = create_model(config, tasks=["depth"], decoder_blocks=2)
    assert type(model) is MultiTaskBaseline and list(model.tasks) == ["depth"]
    assert (model.config.width, model.config.decoder_blocks) == (config.width, 2)
    assert create_model(small_config()).config == small_config()


def test_pretrained_encoder(tmp_path, monkeypatch):
    """By the encoder's name, or from a file; a clear error without a source."""
    torch.save(small_model().initial.backbone.state_dict(), tmp_path / "encoder.pth")
    model = create_model(small_config(), pretrained=tmp_path / "encoder.pth")
    assert torch.equal(model.initial.backbone.conv1.weight, small_model().initial.backbone.conv1.weight)
    if pretrained_source("efficientnet_lite0") is not None:
        lite = dict(backbone="efficientnet_lite0", **SMALL)
        one, two = (create_model("mtl", ["depth"], pretrained=True, **lite) for _ in range(2))
        state, other = one.initial.backbone.state_dict(), two.initial.backbone.state_dict()
        assert all(torch.equal(state[key], other[key]) for key in state)
    monkeypatch.setattr("dmtl.models.encoder_weights.pretrained_source", lambda name: None)
    with pytest.raises(ConfigError, match=r"no ImageNet weights of resnet18 .*pip install 'dmtl\[timm\]'"):
        create_model("mtl", ["depth"], pretrained=True, **SMALL)
