"""Shared parts of the Triton kernels between maps and tokens: tiles of [tokens (or cells), channels], and the
forms in which kernels are compiled ahead of time."""

from __future__ import annotations

import torch
import triton

from dmtl.kernels.triton import _launch
from dmtl.kernels.triton._launch import INTERPRETED, POINTERS, support

SUPPORT = support()
# A thread accesses 16 bytes at a time: a warp, 512 or more neighbouring bytes of a pixel, or many pixels of a
# narrow map.
WIDE = {"TOKENS": 4, "CHANNELS": 256, "num_warps": 4}
NARROW = {"TOKENS": 8, "CHANNELS": 64, "num_warps": 4}
CONFIGS = [WIDE, NARROW]


def config_for(channels: int) -> dict[str, int]:
    """Return the tile for maps with this number of channels."""
    if INTERPRETED:  # in the interpreter, every program costs time
        return {"TOKENS": 64, "CHANNELS": triton.next_power_of_2(channels), "num_warps": 4}
    return WIDE if channels >= WIDE["CHANNELS"] // 2 else NARROW


def tiles(config: dict[str, int], tokens: int, channels: int) -> tuple[int, int]:
    """Return the grid of programs over these numbers of tokens (or cells) and channels."""
    return triton.cdiv(tokens, config["TOKENS"]), triton.cdiv(channels, config["CHANNELS"])


def options(config: dict[str, int]) -> dict[str, int]:
    return {"num_warps": config["num_warps"]}


def compilation(kernel, dtype: torch.dtype, config: dict[str, int], constants: dict, pointers: dict) -> tuple:
    """Return one form of a kernel (`_launch.compilation`).

    `pointers` has the types of pointers whose type is not `dtype` (None: the pointer is absent).
    """
    constants = constants | {name: None for name, kind in pointers.items() if kind is None}
    sizes = {"channels": "i32:16", "bias_stride": "i32:16"} if config is WIDE else {}
    return _launch.compilation(kernel, config, constants, sizes | pointers, POINTERS[dtype])
