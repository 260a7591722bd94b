"""ModelConfig: what it accepts, and how it says no."""

import dataclasses
import json

import pytest
import torch

from dmtl.errors import ConfigError
from dmtl.models import DiffusionMTL, ModelConfig, MultiTaskBaseline, create_model
from dmtl.tasks import make_task
from tests.models.cases import TASKS, small_config

SPECS = [TASKS["edge"].spec()]


def test_round_trip_through_json():
    config = small_config(diffusion="prediction", betas=[0.1, 0.05], residual=True, signal_scale=2, eta=0.5)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    control = small_config(without=["noise", "condition"])
    assert ModelConfig.from_dict(json.loads(json.dumps(control.to_dict()))) == control
    older = {key: value for key, value in small_config().to_dict().items() if key != "without"}
    assert ModelConfig.from_dict(older) == small_config()
    assert ModelConfig.from_dict(ModelConfig().to_dict()) == ModelConfig()


@pytest.mark.parametrize(
    ("key", "near"), [("widht", "width"), ("step", "steps"), ("beta_stat", "beta_start")]
)
def test_unknown_key_names_the_nearest(key, near):
    with pytest.raises(ConfigError, match=rf"model\.{key} is not a known key; did you mean 'model\.{near}'"):
        ModelConfig.from_dict({key: 1})


def test_unknown_key_that_is_near_nothing():
    with pytest.raises(ConfigError, match=r"model\.zzz is not a known key \(known here: tasks, backbone"):
        ModelConfig.from_dict({"zzz": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(diffusion="features"), "diffusion must be one of feature, prediction, none, got 'features'"),
        (dict(width=0), "width must be at least 1, got 0"),
        (dict(steps=-1), "steps must be at least 1, got -1"),
        (dict(heads=3), "width must be a multiple of model.heads = 3, got 512"),
        (dict(width="512"), "width must be of type int, got '512'"),
        (dict(width=512.0), r"width must be of type int, got 512\.0"),
        (dict(steps=True), "steps must be of type int, got True"),
        (dict(residual="no"), "residual must be of type bool, got 'no'"),
        (dict(backbone=18), "backbone must be of type str, got 18"),
        (dict(eta="1"), "eta must be of type float, got '1'"),
        (
            dict(sampler="dpmpp2m"),
            "sampler must be one of ancestral, ddim, dpmpp_2m, .*did you mean 'dpmpp_2m'",
        ),
        (
            dict(sampler="dpmpp_2m", eta=0.0),
            'eta is only an option of the sampler "ddim", got 0.0 with "dpmpp_2m"',
        ),
        (dict(beta_start=0.1, beta_end=0.01), "beta_start and model.beta_end must satisfy"),
        (dict(beta_end=1.0), "beta_start and model.beta_end must satisfy"),
        (dict(beta_start=float("nan")), "beta_start and model.beta_end must satisfy"),
        (dict(betas=[]), "betas must be a list of numbers between 0 and 1"),
        (dict(betas=[0.1, 1.5]), "betas must be a list of numbers between 0 and 1"),
        (dict(betas=0.1), "betas must be a list, got 0.1"),
        (dict(betas=[0.1, 0.2, 0.3], steps=4), "steps must be the number of model.betas, 3, got 4"),
        (dict(eta=1.5), r"eta must be in \[0, 1\], got 1\.5"),
        (dict(signal_scale=0.0), "signal_scale must be positive and finite, got 0"),
        (dict(signal_scale=float("inf")), "signal_scale must be positive and finite, got inf"),
        (dict(tasks="semseg"), "tasks must be a list of task specifications, got 'semseg'"),
        (dict(tasks=[3]), r"tasks must be a list of task specifications, got \[3\]"),
        (dict(tasks=None), "tasks must be a list of task specifications, got None"),
        (dict(token_reduction=3), "token_reduction must be one of 1, 2, 4, got 3"),
        (dict(chain_init="zero"), "chain_init must be .*, got 'zero'"),
        (dict(without=["nose"]), "without must be one of noise, condition, got 'nose'"),
        (dict(without="noise"), "without must be a list, got 'noise'"),
        (dict(without=[["noise"]]), "without must be one of noise, condition"),
        (dict(without=["noise"], diffusion="none"), 'without must be empty if model.diffusion is "none"'),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ConfigError, match=rf"model\.{message}"):
        ModelConfig.from_dict(values)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 3


def test_create_model_chooses_the_class():
    assert isinstance(create_model(small_config()), DiffusionMTL)
    assert isinstance(create_model(small_config(diffusion="none")), MultiTaskBaseline)
    with pytest.raises(ConfigError, match="model.diffusion must be .* for DiffusionMTL"):
        DiffusionMTL(small_config(diffusion="none"))
    with pytest.raises(ConfigError, match="model.diffusion must be .* for MultiTaskBaseline"):
        MultiTaskBaseline(small_config())


def test_tasks_are_needed_and_distinct():
    with pytest.raises(ConfigError, match="model.tasks must name at least one task"):
        create_model(ModelConfig())
    with pytest.raises(ConfigError, match="model.tasks must be distinct, got 'edge' twice"):
        create_model(ModelConfig(tasks=SPECS * 2, width=8, backbone_width=4))


def test_defaults_are_the_published_network(golden_dir):
    """133 million parameters, counted without allocating them."""
    published = json.loads((golden_dir / "official_state_dict.json").read_text())
    tasks = [make_task(t).spec() for t in ("semseg", "human_parts", "sal", "normals", "edge")]
    with torch.device("meta"):
        model = create_model(ModelConfig(tasks=tasks))
    shapes = sorted(tuple(v.shape) for v in model.state_dict().values())
    assert shapes == sorted(
        tuple(v) for k, v in published.items() if not (k.startswith("diffusion_model.") and k.count(".") == 1)
    )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 132.91
