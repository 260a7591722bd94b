"""Surface normals: L1 distance of normalised logits to the label, summed over x, y, z."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.tasks.unit_vector import UnitVector


@dataclass(frozen=True, kw_only=True)
class Normals(UnitVector):
    """Orientation of the visible surface, in the camera frame that the data set gives."""

    name: str = "normals"
    weight: float = 10.0
