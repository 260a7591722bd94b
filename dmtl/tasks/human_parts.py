"""Human parts: cross-entropy over background and six parts; images without a person are wholly ignored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmtl.tasks.classes import Classes

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")


@dataclass(frozen=True, kw_only=True)
class HumanParts(Classes):
    """Which part of a person a pixel shows."""

    name: str = "human_parts"
    classes: tuple[str, ...] = PARTS
    weight: float = 2.0

    def crop(self, label_KHW: Tensor) -> Tensor:
        """Wholly ignored where nobody is left in it, as whole images without a person are (published)."""
        label_KHW = super().crop(label_KHW)
        somebody = ((label_KHW != 0) & self.valid(label_KHW)).any()
        return label_KHW if somebody else torch.full_like(label_KHW, self.ignore)
