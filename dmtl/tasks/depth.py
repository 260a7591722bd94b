"""Depth: masked L1 in metres."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.tasks.scalar import Scalar


@dataclass(frozen=True, kw_only=True)
class Depth(Scalar):
    """Distance of the visible surface from the camera. Labels of 0 or less are ignored, as is 255."""

    name: str = "depth"
    distance: bool = True
