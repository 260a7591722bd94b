"""Training checkpoints: everything that decides what the next step computes, in one file, atomically."""

from __future__ import annotations

from pathlib import Path

import torch

from dmtl.errors import CheckpointError
from dmtl.models.weights import load_refusal, write_torch

FORMAT = 1


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Writes `state` (tensors, numbers, lists, dicts). A full disk leaves the checkpoint before it intact."""
    write_torch(path, {"format": FORMAT, **state})


def load_checkpoint(path: str | Path) -> dict:
    """Reads what `save_checkpoint` wrote, without unpickling anything but tensors and plain containers."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    with file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch.load raise almost anything
            raise CheckpointError(
                f"{path}: damaged or not a training checkpoint ({load_refusal(error)})"
            ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected a training checkpoint of format {FORMAT}, "
            f"got format {state.get('format') if isinstance(state, dict) else type(state).__name__}"
        )
    return state
