"""Regenerates the inputs of the golden cases by name (golden/README.md)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHANNELS = {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1}
WIDTH = 512


def rs(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)


def normal(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rs(name).standard_normal(shape).astype(np.float32))


def published_state(golden_dir: Path, steps: int) -> dict[str, Tensor]:
    """The published state dict for S steps, its tensors filled by the name of their key."""
    shapes = json.loads((golden_dir / "official_state_dict.json").read_text())
    schedules = np.load(golden_dir / "schedules.npz")
    state = {}
    for key, shape in shapes.items():
        buffer = key.removeprefix("diffusion_model.")
        if key.startswith("diffusion_model.") and "." not in buffer:
            if f"{steps}/{buffer}" in schedules:
                state[key] = torch.from_numpy(schedules[f"{steps}/{buffer}"])
            else:
                from dmtl.diffusion import Schedule
                from dmtl.models.published import published_buffers

                state[key] = published_buffers(Schedule.from_range(steps))[buffer]
        else:
            state[key] = _filled(key, tuple(shape))
    return state


def _filled(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    z = normal(key, shape)
    if key.endswith("running_mean"):
        return 0.1 * z
    if key.endswith("running_var"):
        return 1 + 0.1 * z.abs()
    if len(shape) == 1:
        return 1 + 0.1 * z if key.endswith("weight") else 0.05 * z
    return z * float(np.float32(np.sqrt(1 / np.prod(shape[1:]))))


def image(case: str, batch: int, height: int, width: int) -> Tensor:
    return normal(f"{case}/image", (batch, 3, height, width))


def noise(case: str, steps: int, batch: int, height: int, width: int) -> dict[str, list[Tensor]]:
    shape = (batch, WIDTH, height // 8, width // 8)
    return {task: [normal(f"{case}/noise/{task}/{k}", shape) for k in range(steps)] for task in CHANNELS}


def labels(case: str, batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Labels with 7 % of the pixels set to 255."""
    shape = (batch, 1, height, width)
    made = {
        "semseg": rs(f"{case}/label/semseg").randint(0, 21, shape),
        "human_parts": rs(f"{case}/label/human_parts").randint(0, 7, shape),
        "sal": rs(f"{case}/label/sal").randint(0, 2, shape),
        "edge": rs(f"{case}/label/edge").random_sample(shape) < 0.1,
    }
    n = rs(f"{case}/label/normals").standard_normal((batch, 3, height, width))
    made["normals"] = n / np.sqrt((n**2).sum(1, keepdims=True))
    out = {}
    for task in CHANNELS:
        label = made[task].astype(np.float32)
        ignore = rs(f"{case}/ignore/{task}").random_sample(shape) < 0.07
        out[task] = torch.from_numpy(np.where(ignore, np.float32(255), label))
    return out
