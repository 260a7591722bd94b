"""Load a trained model from a run, a folder, a file or the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models.config import ModelConfig
from dmtl.models.create import create_model
from dmtl.models.diffusion_mtl import DiffusionMTL, MultiTaskBaseline
from dmtl.models.hub import download, is_hub_id
from dmtl.models.published import model_from_published
from dmtl.models.weights import CONFIG, WEIGHTS, load_state, read_state, read_weights

BUILTIN = "six-tasks"
"""Name of the model that comes with the package."""
BUILTIN_FOLDER = Path(__file__).parent / "builtin" / BUILTIN
CARD = "README.md"  # file name of the model card in a model folder


def from_pretrained(
    source: str | os.PathLike | None = None, **options: Any
) -> DiffusionMTL | MultiTaskBaseline:
    """Load a trained model.

    Args:
        source: the model to load; None: "six-tasks", the model that comes with the package. Or one of

            - the folder of a run: loads the model in its `model/`,
            - a folder written by `save_pretrained`: config.json and model.safetensors,
            - a file in the published format (.pth.tar), which is converted in memory,
            - an id "org/name" on the Hugging Face Hub (extra `dmtl[hub]`), if no such path exists.
        options: for the Hub, those of `huggingface_hub.snapshot_download`: revision, token, cache_dir.

    Returns:
        The model, on the CPU and in eval mode.

    Raises:
        CheckpointError: the model is missing, damaged or of another format, or "six-tasks" is also a path in
            the current folder. The message names the file.
    """
    if source is None:
        return _from_folder(BUILTIN_FOLDER)
    path = Path(source)
    if source == BUILTIN:
        if path.exists():
            raise CheckpointError(
                f"{source}: is both a path here and the name of the model that comes with dmtl; pass "
                f"./{source} for the path, or {BUILTIN_FOLDER} for the model"
            )
        path = BUILTIN_FOLDER
    if path.is_file():
        return model_from_published(read_state(path), str(path))
    if path.is_dir():
        return _from_folder(path / "model" if (path / "model" / CONFIG).is_file() else path)
    if is_hub_id(source):
        return _from_folder(download(str(source), **options))
    raise CheckpointError(
        f"{source}: no such file or folder, expected a run, a model folder, a published file, "
        f"{BUILTIN} or org/name"
    )


def holds_model(folder: str | os.PathLike) -> bool:
    """Return whether a folder is a run or a model folder, even an incomplete one."""
    files = (CONFIG, WEIGHTS, f"model/{CONFIG}", "config.toml")
    return any((Path(folder) / file).is_file() for file in files)


def _from_folder(folder: Path) -> DiffusionMTL | MultiTaskBaseline:
    config, state = read_weights(folder)
    try:
        model = create_model(ModelConfig.from_dict(config))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    load_state(model, state, str(folder))
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{folder}: {name} has values that are not finite; the training failed or the file is damaged"
            )
    return model.eval()
