"""Read and write weights: `config.json` and `model.safetensors`.

Writes are atomic; reads run no pickled code.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dmtl.errors import CheckpointError, one_line
from dmtl.runtime.files import write_atomically, write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HALF_ERROR = 1e-3  # largest relative error (L2) of a tensor stored in float16
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]  # NumPy's stubs leave `_core` out
_NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [  # in older optimiser states
    np.dtype,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    _SCALAR,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


def write_weights(
    directory: str | Path, config: Mapping, state: Mapping[str, Tensor], half: bool = False
) -> None:
    """Write `config.json` and `model.safetensors`, each atomically.

    Args:
        directory: folder to write to; it is created if it does not exist.
        config: content of `config.json`.
        state: tensors by name.
        half: store tensors in float16 as `halve` does.

    Raises:
        OSError: a file cannot be written, for example because the disk is full; the message names it.
    """
    directory = Path(directory)
    state = halve(state) if half else state
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(directory / WEIGHTS, lambda path: _save(tensors, path))
    text = json.dumps(config, indent=2) + "\n"
    write_text(directory / CONFIG, text)


def halve(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round the weights of convolutions and linear layers to float16.

    Tensors of at most one dimension keep their dtype: biases, parameters and running statistics of
    normalisation layers, and counters. They are small, and a running variance may be outside the range of
    float16 (6e-8 to 65,504). A tensor also keeps its dtype if rounding would change it by more than 0.1 %
    (relative, in L2), because some of its numbers are outside that range. Numbers inside the range change by
    at most 0.05 %.
    """
    rounded = {key: value.half() for key, value in state.items() if value.dim() > 1}
    return {
        key: rounded[key] if key in rounded and _is_close(rounded[key], value) else value
        for key, value in state.items()
    }


def _is_close(rounded: Tensor, value: Tensor) -> bool:
    """Return whether the relative error (L2) is at most `HALF_ERROR`; False if a number is not finite."""
    return bool((rounded.double() - value.double()).norm() <= HALF_ERROR * value.double().norm())


def read_weights(directory: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Read (configuration, tensors) from a folder that `write_weights` wrote.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / name}: no such file, expected a folder with {CONFIG} and {WEIGHTS}"
            )
    try:
        config = json.loads((directory / CONFIG).read_text())
    except ValueError as error:
        raise CheckpointError(f"{directory / CONFIG}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{directory / CONFIG}: must hold a JSON object, got {type(config).__name__}")
    return config, _read_safetensors(directory / WEIGHTS)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name, without the prefix `module.`, from a `.safetensors` or `torch.save` file.

    A torch file may hold the tensors directly, or under the key "model" (the published checkpoint) or
    "state_dict". Only tensors, plain containers and NumPy numbers are unpickled.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected weights (.pth, .tar or .safetensors)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_torch(path)
    state = content
    for entry in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            state = content[entry]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: expected tensors by name, or a dictionary that holds them as 'model' or 'state_dict'"
            + (
                f", got one with {', '.join(map(repr, list(state)[:6]))}"
                if isinstance(state, Mapping)
                else ""
            )
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load all tensors into a model; raise CheckpointError with the first keys and shapes that do not fit."""
    check_state(model.state_dict(), state, source)
    model.load_state_dict(state)


def check_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError unless `state` has the keys and shapes of `expected`."""
    problems = [f"{k}: missing" for k in expected if k not in state]
    problems += [f"{k}: not part of this configuration" for k in state if k not in expected]
    problems += [
        f"{k}: shape {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{source}: weights do not fit the configuration: " + "; ".join(problems[:4]) + more
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None


def _read_torch(path: Path) -> object:
    with open(path, "rb") as file, torch.serialization.safe_globals(_NUMPY_NUMBERS):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: not a checkpoint, or it contains other objects than weights, which are not loaded "
                f"({load_refusal(error)})"
            ) from None
        except Exception as error:  # a damaged file makes torch.load raise almost anything
            raise CheckpointError(
                f"{path}: damaged or not a torch checkpoint ({load_refusal(error)})"
            ) from None


def _save(tensors: Mapping[str, Tensor], path: str) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors reports a full disk with its own exception
        raise OSError(None, str(error)) from None


def write_torch(path: str | Path, content: object) -> None:
    """Write a file with `torch.save`, atomically; raise OSError, which names `path`, if that fails."""

    def write(temporary: str) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk in this way
            text = f"PyTorch could not write the whole file, is the disk full? ({one_line(error)})"
            raise OSError(None, text) from None

    write_atomically(path, write)


def load_refusal(error: Exception) -> str:
    """Return the error of torch.load in one line, without its advice to unpickle untrusted files."""
    lines = re.split(r"trusted source\.|WeightsUnpickler error:", str(error))[-1].strip().splitlines()
    return lines[0].split(". ")[0] if lines else type(error).__name__
