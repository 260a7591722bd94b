"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """`average` follows `model`: w <- d w + (1 - d) w_model after every step, buffers included.

    The decay d rises from 0.1 to `decay` as (1 + step) / (10 + step), so that the first weights are soon
    forgotten.
    Integer buffers (batch counts) are copied. Nothing here waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.average.state_dict().values(), model.state_dict().values(), strict=True))
        self._floating = [(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
        self._others = [(ours, theirs) for ours, theirs in pairs if not ours.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = zip(*self._floating, strict=True)
        torch._foreach_lerp_(list(ours), list(theirs), 1 - decay)
        for copied, source in self._others:
            copied.copy_(source)
