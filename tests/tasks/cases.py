"""Tasks, logits and labels that the tests of this folder share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.tasks import KNOWN, Task, make_task

TASKS: dict[str, Task] = {name: make_task(name) for name in KNOWN} | {
    "material": make_task("material", "classes", classes=["wood", "stone", "glass", "cloth"]),
    "shadow": make_task("shadow", "binary", pos_weight=3.0),
    "flow": make_task("flow", "unit_vector"),
    "heat": make_task("heat", "scalar", low=-5, high=5),
    "range": make_task("range", "scalar", log=True, distance=True, ignore=0),
    "disparity": make_task("disparity", "scalar", inverse=True, score="abs_err"),
}


def logits_of(task: Task, batch: int = 3, height: int = 5, width: int = 7, seed: int = 1) -> Tensor:
    """float32 [B,C,H,W]"""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, task.channels, height, width, generator=generator)


def label_of(task: Task, batch: int = 3, height: int = 5, width: int = 7, seed: int = 2) -> Tensor:
    """Labels of the storage type of the task's kind, about a fifth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 1, height, width)
    if task.kind == "classes":
        label = torch.randint(task.channels, shape, generator=generator, dtype=torch.uint8)
    elif task.kind == "binary":
        label = torch.randint(2, shape, generator=generator, dtype=torch.uint8)
    elif task.kind == "unit_vector":
        label = F.normalize(torch.randn(batch, 3, height, width, generator=generator), dim=1)
    else:
        label = 0.1 + 9 * torch.rand(shape, generator=generator)
    return label.masked_fill(ignored(batch, height, width, seed), task.ignore)


def ignored(batch: int = 3, height: int = 5, width: int = 7, seed: int = 2) -> Tensor:
    """Where `label_of` has no label, bool [B,1,H,W]."""
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(1000 + seed)) < 0.2
