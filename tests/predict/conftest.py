"""A model that costs nothing:

its maps are a fixed function of the image, so that every file can be checked pixel by pixel.
"""

import builtins
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmtl.tasks import make_task

TASKS = {
    task.name: task
    for task in (
        make_task("semseg", classes=["dark", "middle", "bright"]),
        make_task("sal"),
        make_task("normals"),
        make_task("edge"),
        make_task("depth"),
        make_task("height", "scalar"),
    )
}


class BrightnessModel(nn.Module):
    """The interface of `DiffusionMTL`; all logits are made of the brightness of the pixel."""

    def __init__(self):
        super().__init__()
        self.tasks = TASKS
        self.device = torch.device("cpu")
        self.calls = []

    def maps(self, image, tasks=None, *, steps=None, eta=None, sampler=None, noise=None):
        self.calls.append((tuple(image.shape), tuple(tasks), steps))
        light = image.mean(1, keepdim=True)  # normalised: about -2 .. 2.6
        logits = {
            "semseg": torch.cat([-light, 1 - light.abs() * 2, light], 1),
            "sal": torch.cat([-light, light], 1),
            "normals": image,
            "edge": light,
            "depth": 3 + light,
            "height": 10 * light - 5,
        }
        maps = {t: self.tasks[t].decode(logits[t]) for t in tasks}
        return SimpleNamespace(maps=maps, finite=dict.fromkeys(tasks, True))


class FakeEngine:
    """The interface of `Engine` around a BrightnessModel; the second draw of the noise is as the first."""

    def __init__(self, model, device, *, precision, steps, samples, **options):
        self.model, self.steps, self.samples = model, steps, samples
        self.precision = "fp32" if precision == "auto" else precision
        self.options = options

    def maps(self, image, tasks, *, noise):
        self.noise = noise
        out = self.model.maps(image, tasks, steps=self.steps)
        light = image.mean(1).abs() if self.samples > 1 else None
        out.uncertainty = {} if light is None else dict.fromkeys(tasks, light)
        out.steps = 3 if self.steps == "auto" else self.steps
        return out


@pytest.fixture
def without_av(monkeypatch):
    """PyAV cannot be imported."""
    load = builtins.__import__

    def without(name, *arguments, **options):
        if name == "av":
            raise ImportError("No module named 'av'")
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.fixture
def model(monkeypatch):
    """A BrightnessModel, of which Predictor can make an engine too."""
    from dmtl.predict import predictor

    real = predictor.Engine

    def engine(model, *arguments, **options):
        kind = FakeEngine if isinstance(model, BrightnessModel) else real
        return kind(model, *arguments, **options)

    monkeypatch.setattr(predictor, "Engine", engine)
    return BrightnessModel()
