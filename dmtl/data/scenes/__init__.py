"""The embedded data set `scenes`: furnished rooms with people, rendered on the fly.

Each image is a ray-cast room (planes, boxes, balls, capped cones, round cones for limbs) with procedural
textures, a lamp, often sun through a window, cast shadows and sensor noise. The labels come from the same
rays and are exact:

    semseg       uint8 [1,H,W]    14 classes, `CLASSES`
    human_parts  uint8 [1,H,W]    0 background, 1 head (with hair), 2 torso (with neck), 3 upper arm, 4 lower
                                  arm (with hand), 5 upper leg, 6 lower leg (with foot); all 255 if no one
                                  is visible, as in PASCAL
    sal          uint8 [1,H,W]    1 on the most prominent things and people; the rule is in `render.salient`
    normals      float32 [3,H,W]  unit vectors in the camera frame: x right, y up, z towards the camera. They
                                  face the viewer; a mirrored image negates x
    edge         uint8 [1,H,W]    1 where the pixel to the right or below belongs to another object or to
                                  another side of the room
    depth        float32 [1,H,W]  metres along the optical axis

A scene depends only on (seed, split, index); the image size only changes how it is sampled. The splits use
random streams with different keys and share no scene.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch

from dmtl.data.base import LabelledImages, Sample, unknown_name
from dmtl.data.scenes.classes import CLASSES
from dmtl.data.scenes.render import LABELS, render
from dmtl.errors import DataError
from dmtl.tasks import make_task

__all__ = ["CLASSES", "SPLITS", "Scenes"]

SPLITS = {"train": 0, "val": 1, "test": 2}
"""Name of a split -> second half of the key of its random stream."""


class Scenes(LabelledImages):
    """Rendered images of furnished rooms with exact labels; nothing is stored or downloaded.

    Args:
        split: "train", "val" or "test".
        count: number of images; a larger count appends images and does not change the first ones.
        size: (height, width) in pixels, at least 8 each.
        seed: 0 to 2^63 - 1; each seed gives other scenes.
        tasks: names of the tasks to use; None: all six.

    Raises:
        DataError: an argument is wrong; the message names it.
    """

    to_order = True

    def __init__(
        self,
        split: str,
        count: int = 1000,
        size: tuple[int, int] = (128, 128),
        seed: int = 0,
        tasks: Iterable[str] | None = None,
    ):
        if split not in SPLITS:
            raise DataError(f"Scenes: split must be one of {', '.join(SPLITS)}, got {split!r}")
        count = _integer("count", count, 1, 10**9)
        seed = _integer("seed", seed, 0, 2**63 - 1)
        if not isinstance(size, Iterable) or isinstance(size, str) or len(tuple(size)) != 2:
            raise DataError(f"Scenes: size must be (height, width), got {size!r}")
        height, width = (_integer("size", side, 8, 8192) for side in size)
        names = list(dict.fromkeys(LABELS if tasks is None else tasks))
        for name in names:
            if name not in LABELS:
                raise DataError(f"Scenes: {unknown_name('task', name, LABELS)}")
        options: dict[str, dict] = {"semseg": {"classes": CLASSES}}
        made = {name: make_task(name, **options.get(name, {})) for name in names}
        super().__init__("scenes", split, made, [f"{split}-{index:06d}" for index in range(count)])
        self.size, self.seed = (height, width), seed

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        """Render image `index` with the labels of `tasks` (None: all tasks of the data set)."""
        if not 0 <= index < len(self):
            raise IndexError(f"Scenes.read: index must be in 0..{len(self) - 1}, got {index}")
        image, labels = render(self.seed, SPLITS[self.split], int(index), self.size, self.wanted(tasks))
        tensors = {name: torch.from_numpy(label) for name, label in labels.items()}
        return Sample(self.ids[index], torch.from_numpy(image), tensors)

    def identity(self, task: str | None = None) -> list:
        return [*super().identity(task), self.seed, list(self.size)]


def _integer(name: str, value: Any, low: int, high: int) -> int:
    try:
        number: int | None = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise DataError(f"Scenes: {name} must be an integer in {low}..{high}, got {value!r}")
    return number
