"""Human parts: cross-entropy over background and six parts; images without a person are wholly ignored."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.tasks.classes import Classes

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")


@dataclass(frozen=True, kw_only=True)
class HumanParts(Classes):
    """Which part of a person a pixel shows."""

    name: str = "human_parts"
    classes: tuple[str, ...] = PARTS
    weight: float = 2.0
