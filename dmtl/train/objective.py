"""Objectives: extra losses of a run, which `optim.objectives` names.

The trainer treats the parameters of all objectives in the same way: it distributes, optimises, clips, saves
and restores them together with those of the model, and drops them at the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmtl.errors import ConfigError
from dmtl.registry import Registry

if TYPE_CHECKING:
    from dmtl.data.loading.loader import Batch
    from dmtl.models import DiffusionMTL, MultiTaskBaseline, Prediction


@dataclass(frozen=True)
class Seen:
    """The input of an objective: what the model computed in a step, or in a micro-batch of it.

    `feature` and `logits` are None unless an objective of the run requests them (`Objective.dense`).
    Gradients flow through all of them.

    Attributes:
        batch: the images and labels.
        prediction: logits of the labelled (image, task) pairs, rows in the order of the batch; at 1/8
            resolution, final ones at 1/`output_stride`.
        feature: [B, C, h, w], the input of all decoders.
        logits: task -> [B, C_T, h, w], for every task and image.
    """

    batch: Batch
    prediction: Prediction
    feature: Tensor | None = None
    logits: dict[str, Tensor] | None = None


class Objective(nn.Module):
    """Base class of extra losses, which may have parameters. `Objective(model)` creates it on the CPU.

    Attributes:
        parts: name of a loss in the log -> its weight within the objective.
        dense: whether it needs `Seen.feature` and `Seen.logits`, which only the plain baseline has
            (`model.diffusion = "none"`).
    """

    parts: Mapping[str, float] = {}
    dense: bool = False

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline):
        super().__init__()

    def reaches(self, batch: Batch) -> bool:
        """Return whether the objective adds anything to the loss of a batch; must not wait for the device.

        Its parameters and inputs only get a gradient if this is True.
        """
        return True

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """Return name of a part -> losses, float32 [n], or {}.

        The sum over the step is divided by the step's number of images.
        """
        raise NotImplementedError(f"{type(self).__name__}.forward")


OBJECTIVES: Registry[Callable[..., Objective]] = Registry(
    "objective", {"mtpsl": "dmtl.train.consistency:Consistency"}
)


def check_objectives(weights: Mapping[str, float]) -> None:
    """Raise ConfigError for an unknown name in `optim.objectives` or an invalid weight."""
    for name, weight in weights.items():
        OBJECTIVES.get(name, "optim.objectives")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"optim.objectives.{name} must be at least 0 and finite, got {weight}")


def make_objectives(
    weights: Mapping[str, float], seed: int, model: DiffusionMTL | MultiTaskBaseline
) -> nn.ModuleDict:
    """Return the objectives of `optim.objectives` by name, on the model's device.

    Their random weights depend only on `seed`. Objectives with weight 0 are left out.

    Raises:
        ConfigError: the model lacks something that an objective needs.
    """
    made = nn.ModuleDict()
    for name, weight in weights.items():
        if weight:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made[name] = OBJECTIVES.get(name)(model)
            if made[name].dense and model.config.diffusion != "none":
                raise ConfigError(
                    f'optim.objectives.{name} needs model.diffusion = "none", got {model.config.diffusion!r}'
                )
    return made.to(model.device)
