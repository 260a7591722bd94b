"""How much memory a prediction takes, and how much there is."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

from dmtl.infer.tiles import MULTIPLE
from dmtl.models.config import ModelConfig

SHARE = 0.8  # of the available memory that a prediction may plan with
SMALLEST_TILE = 256  # pixels; less would show the tasks too little of the scene
_WORKSPACE = 96 << 20  # transformed patches and weights of a CPU's convolutions, at most


def peak_bytes(
    config: ModelConfig,
    wanted: int,
    batch: int,
    height: int,
    width: int,
    *,
    itemsize: int = 4,
    samples: int = 1,
) -> int:
    """Bytes that a prediction needs beside the parameters, to about a third.

    Counted in feature maps [B, C, H/8, W/8]: the noisy signals, the skip maps and the denoised signals of all
    wanted tasks (and their features, where another draw of the noise needs them again), and some that pass
    by; the encoder's first maps are twice as large; decoded maps are as large as the image.
    """
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    pixels = batch * height * width
    one = pixels // 64 * config.width * itemsize
    encoder = 3 * pixels // 4 * config.backbone_width * itemsize
    chain = (3 + (samples > 1)) * wanted + 3 if config.diffusion == "feature" else 2 * wanted + 3
    ends = pixels * 4 * (4 * wanted + (24 if samples > 1 else 0))
    return max(encoder, one * (chain if config.diffusion != "none" else wanted + 3)) + ends + _WORKSPACE


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device; of the machine (and its container) for "cpu"; None where nobody can tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = [value for value in (_meminfo(), _cgroup()) if value is not None]
    return min(limits) if limits else None


def largest_tile(config: ModelConfig, wanted: int, batch: int, available: int, **options) -> int:
    """The largest side of a square tile, a multiple of 32, whose prediction fits; at least 256."""
    side = SMALLEST_TILE
    while peak_bytes(config, wanted, batch, side + MULTIPLE, side + MULTIPLE, **options) <= available:
        side += MULTIPLE
    return side


def return_freed() -> None:
    """Gives freed heap memory back to the system, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _cgroup() -> int | None:
    try:
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current")
        )
        return None if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None
