"""`model.without`: the controls that say which part of the diffusion process helps."""

import pytest
import torch

from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.models import create_model, from_pretrained
from dmtl.models.published import convert_to_published
from tests.models.cases import TASKS, small_config, small_model

MECHANISMS = ["feature", "prediction"]


def equal(a: dict, b: dict) -> bool:
    assert list(a) == list(b)
    return all(torch.equal(a[task], b[task]) for task in a)


@pytest.mark.parametrize("without", [[], ["noise"], ["condition"], ["noise", "condition"]])
@pytest.mark.parametrize("diffusion", MECHANISMS)
@torch.no_grad()
def test_noise_matters_unless_there_is_none(diffusion, without):
    model = small_model(diffusion=diffusion, without=without, steps=3)
    image = torch.randn(2, 3, 64, 32)
    first, second = (model(image, noise=CounterNoise(seed), trace=True) for seed in (0, 1))
    assert equal(first.final, second.final) == ("noise" in without)
    assert equal({t: torch.stack(m) for t, m in first.trace.items()},
                 {t: torch.stack(m) for t, m in second.trace.items()}) == ("noise" in without)  # fmt: skip
    for steps in (1, 2, 5):  # other numbers of steps have plans of their own
        several = [model(image, steps=steps, noise=CounterNoise(seed)).final for seed in (0, 1)]
        assert equal(*several) == ("noise" in without)


@pytest.mark.parametrize("without", [["condition"], ["noise", "condition"], []])
@pytest.mark.parametrize("diffusion", MECHANISMS)
@torch.no_grad()
def test_other_tasks_matter_unless_there_is_no_condition(diffusion, without):
    """What the initial network predicts for edge reaches the final map of semseg by the condition alone."""
    model, image = small_model(diffusion=diffusion, without=without), torch.randn(2, 3, 64, 32)
    before = model(image, ["semseg"]).final["semseg"]
    model.initial.heads["edge"].bias += 3
    assert torch.equal(before, model(image, ["semseg"]).final["semseg"]) == ("condition" in without)


def test_parameters_are_those_of_the_whole_method():
    whole, control = (create_model(small_config(without=w)) for w in ([], ["noise", "condition"]))
    assert [(n, v.shape) for n, v in whole.state_dict().items()] == [
        (n, v.shape) for n, v in control.state_dict().items()
    ]


@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_gradients_reach_everything_that_is_trained(diffusion):
    model = small_model(diffusion=diffusion, without=["noise", "condition"], detach_condition=False)
    final = model(torch.randn(2, 3, 64, 32), labelled={"semseg": torch.tensor([0, 1])}).final["semseg"]
    final.square().mean().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"initial.embed.weight", "mtdnet.condition.conv.bias"} <= moved
    assert any(name.startswith("mtdnet.denoiser.trunks.semseg") for name in moved)
    assert not any(name.startswith("initial.heads.edge") for name in moved)
    assert "mtdnet.condition.conv.weight" not in moved  # its input is zero


@torch.no_grad()
def test_noise_samples_of_a_model_without_noise_agree():
    """Averaging them gives the same map, and the model is as sure as one sample says."""
    model, image = small_model(without=["noise"]), torch.randn(2, 3, 64, 32)
    engine = Engine(model)
    one, several = engine.maps(image), engine.maps(image, samples=4)
    torch.testing.assert_close(several.maps["heat"], one.maps["heat"])
    assert several.uncertainty["heat"].abs().max() < 1e-8  # the variance over the samples
    assert all(u.isfinite().all() for u in several.uncertainty.values())
    early = engine.maps(image, steps="auto")
    assert early.steps >= 2 and all(early.finite.values())


def test_files(tmp_path):
    model = small_model(without=["condition"])
    model.save_pretrained(tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    assert loaded.config.without == ["condition"]
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert equal(loaded(image).final, model(image).final)
    with pytest.raises(ValueError, match=r"the published format, got .* without = \['condition'\]"):
        convert_to_published(model, tmp_path / "official.pth")
    assert list(TASKS) == list(loaded.tasks)
