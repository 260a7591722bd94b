"""A model that costs nothing:

its maps are a fixed function of the image, so that every file can be checked pixel by pixel.
"""

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
        self.calls = []

    def maps(self, image, tasks=None, *, steps=None, eta=None, noise=None):
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


@pytest.fixture
def model():
    return BrightnessModel()
