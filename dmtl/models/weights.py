"""Weights on disk: `config.json` + `model.safetensors`, written atomically, read without unpickling
anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmtl.errors import CheckpointError
from dmtl.files import write_atomically, write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_weights(directory: str | Path, config: Mapping, state: Mapping[str, Tensor]) -> None:
    """Writes both files; each appears whole or not at all. Raises OSError (naming the file) when the disk
    is full."""
    directory = Path(directory)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(directory / WEIGHTS, lambda path: _save(tensors, path))
    text = json.dumps(config, indent=2) + "\n"
    write_text(directory / CONFIG, text)


def read_weights(directory: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """(configuration, tensors) from a folder written by `write_weights`."""
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / name}: no such file, expected a folder with {CONFIG} and {WEIGHTS}"
            )
    try:
        config = json.loads((directory / CONFIG).read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory / CONFIG}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{directory / CONFIG}: must hold an object, got {type(config).__name__}")
    try:
        return config, load_file(directory / WEIGHTS)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory / WEIGHTS}: damaged or not a safetensors file ({error})") from None


def _save(tensors: Mapping[str, Tensor], path: str) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors reports a full disk with an exception of its own
        raise OSError(None, str(error)) from None


def write_torch(path: str | Path, content: object) -> None:
    """`torch.save`, atomically. Raises OSError naming `path` when the disk is full."""

    def write(temporary: str) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk so
            reason = str(error).splitlines()[0]
            raise OSError(None, f"PyTorch did not get all of it written, is the disk full? ({reason})") from None

    write_atomically(path, write)


def load_refusal(error: Exception) -> str:
    """What torch.load found wrong, in one line, without its advice to unpickle untrusted files."""
    lines = re.split(r"trusted source\.|WeightsUnpickler error:", str(error))[-1].strip().splitlines()
    return lines[0].split(". ")[0] if lines else type(error).__name__
