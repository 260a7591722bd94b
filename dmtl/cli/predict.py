"""`dmtl predict`: maps and pictures for image files and folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import model_folder, say


@dataclass(frozen=True)
class Predict:
    """Predict every task for images of any size.

    Writes OUT/<task>/<name>.png (class ids, probabilities, 16-bit depth, normals), OUT/pictures, OUT/overview
    and OUT/maps.json, which says how to read the maps. An unreadable file is reported at the end; the others
    are done.
    """

    model: Annotated[str, *positional("MODEL")]
    """A run's folder, or a folder with config.json and model.safetensors."""
    images: Annotated[list[str], *positional("IMAGE ...")]
    """Image files and folders."""
    out: str = "predictions"
    """Folder to write."""
    tasks: list[str] | None = None
    """Tasks to predict; default: all."""
    steps: int | None = None
    """Denoising steps; default: as trained."""
    pictures: bool = True
    """Also write coloured pictures and an overview sheet per image."""
    npy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also write unit vectors as float16 arrays."""
    seed: int = 0
    """Seed of the chain's noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Predict, arguments, "predict")
    from dmtl.devices import pick_device
    from dmtl.errors import ConfigError
    from dmtl.infer.predictor import Predictor
    from dmtl.models import load_model

    if not args.images:
        raise ConfigError("IMAGE must be at least one file or folder, got none")
    predictor = Predictor(
        load_model(model_folder(args.model)),
        pick_device(args.device),
        steps=args.steps,
        tasks=args.tasks,
        seed=args.seed,
    )
    summary = predictor.predict_files(args.images, args.out, pictures=args.pictures, npy=args.npy)
    say(summary)
    return 0 if summary.ok else 1
