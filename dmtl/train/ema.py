"""Keep an exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class MovingAverage(Generic[Model]):
    """The average of a model: after every step, w <- d w + (1 - d) w_model for all weights and buffers.

    The decay d rises from 0.1 to `decay` as (1 + step) / (10 + step), so that the first weights are soon
    forgotten. Integer buffers (batch counts) are copied. Frozen weights never change; a skipped step counts
    as a step that left the weights unchanged. Nothing here waits for the device.

    If parameters are sharded (FSDP2) before the average is created, the average is sharded in the same way,
    and every process averages its own shard.
    """

    def __init__(self, model: Model, decay: float):
        self.decay = decay
        own = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in model.parameters()}
        self.average: Model = copy.deepcopy(model, own).eval()  # deepcopy does not support shards
        pairs = list(zip(_here(self.average), _here(model), strict=True))
        self._floating = [(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
        self._others = [(ours, theirs) for ours, theirs in pairs if not ours.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update after optimiser step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = zip(*self._floating, strict=True)
        torch._foreach_lerp_(list(ours), list(theirs), 1 - decay)
        for copied, source in self._others:
            copied.copy_(source)


def _here(model: nn.Module) -> list[Tensor]:
    """Return the tensors of a model's weights and statistics; for sharded ones, the local part."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in model.state_dict().values()]
