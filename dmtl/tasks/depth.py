"""Depth: masked L1, in metres unless the data set gives inverse distances."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.tasks.scalar import Scalar


@dataclass(frozen=True, kw_only=True)
class Depth(Scalar):
    """Distance of the visible surface from the camera, in metres; with `distance=False, inverse=True` the
    inverse of it. Labels of 0 or less are ignored, as is 255."""

    name: str = "depth"
    distance: bool = True
