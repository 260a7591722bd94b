"""Semantic segmentation: the published loss is cross-entropy over the classes, 255 ignored."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.tasks.classes import Classes

PASCAL = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True, kw_only=True)
class SemSeg(Classes):
    """Which thing or stuff a pixel shows; the 21 classes of PASCAL VOC unless others are given."""

    name: str = "semseg"
    classes: tuple[str, ...] = PASCAL
