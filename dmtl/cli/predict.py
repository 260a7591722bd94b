"""`dmtl predict`: maps and pictures for image files, video files and folders."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dmtl.cli._arguments import naming_options, parse, positional
from dmtl.cli._common import say
from dmtl.cli._progress import progress
from dmtl.errors import ConfigError


@dataclass(frozen=True)
class Predict:
    """Predict every task for images of any size and for videos: `dmtl predict photo.jpg`

    Writes OUT/<task>/<name>.png (class ids, probabilities, 16-bit depth, normals), OUT/pictures, OUT/overview
    and OUT/maps.json, which says how to read the maps. The maps of a video's frames are
    OUT/<task>/<name>/<frame>.png, and its pictures are written as videos (this needs PyAV: dmtl[video]). An
    unreadable file is reported at the end; the others are still predicted. Files in a folder that are neither
    images nor videos are skipped and counted, and so are earlier outputs of this command.

    The same command continues an interrupted prediction, and predicts new inputs. Several processes or GPUs
    share the inputs: `torchrun --nproc-per-node 8 -m dmtl predict ...`
    """

    words: Annotated[list[str], *positional("[MODEL] IMAGE ...")]
    """IMAGE: image files, video files and folders of them. MODEL: a run's folder, a model folder, a published
    file (.pth.tar), an id on the Hub (org/name), or six-tasks, the model that comes with dmtl; default:
    six-tasks. The first argument is MODEL unless it has the extension of an image or a video, or is a folder
    without a model."""
    out: str = "predictions"
    """Folder to write."""
    tasks: list[str] | None = None
    """Tasks to predict; default: all."""
    steps: int | Literal["auto"] | None = None
    """Denoising steps, or "auto": until the maps no longer change; default: as trained."""
    sampler: str | None = None
    """Sampler: "ancestral", "ddim", "dpmpp_2m" or a registered one; default: as trained."""
    samples: int = 1
    """Noise samples to average; with 2 or more, OUT/uncertainty shows where they differ."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """"auto" is fp32 on a CPU and bf16 on a GPU."""
    batch_size: int | None = None
    """Images of equal size to compute together; default: 1 on a CPU, up to 8 on a GPU."""
    tile: int | None = None
    """Side in pixels of the tiles of large images; 0: no tiles; default: tiles only if there would not be
    enough memory."""
    downscale: int | None = None
    """Factor by which images are downscaled for the network, such as 4 for large photos; 1: full size;
    default: a factor that gives about the size of the training images. Maps keep the image's size."""
    every: int = 1
    """Predict only every N-th frame of a video."""
    frames: int | None = None
    """Predict at most N frames of a video."""
    pictures: bool = True
    """Also write coloured pictures and an overview sheet per image, or videos of them."""
    npy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also write unit vectors as float16 arrays."""
    shard: str = "1/1"
    """K/N: predict the K-th of N parts of the inputs; the last part to finish writes OUT/maps.json for
    all."""
    seed: int = 0
    """Seed of the chain's noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Predict, arguments, "predict")
    from dmtl.models.pretrained import BUILTIN, BUILTIN_FOLDER, CARD
    from dmtl.predict.predictor import Predictor
    from dmtl.runtime.distributed import connect

    model, images = _split(args.words, args.out)
    shard = _shard(args.shard)
    world = connect(args.device)
    if model is None and world.main:
        say(f"model: {BUILTIN}, which comes with dmtl; see {BUILTIN_FOLDER / CARD}")
    with naming_options(args):
        predictor = Predictor(
            model,
            world.device,
            steps=args.steps,
            sampler=args.sampler,
            tasks=args.tasks,
            seed=args.seed,
            samples=args.samples,
            precision=args.precision,
            batch_size=args.batch_size,
            tile=args.tile,
            downscale=args.downscale,
        )
    with naming_options(args), progress(stderr=True) if world.main else nullcontext() as new_bar:
        summary = predictor.predict_files(
            images,
            args.out,
            pictures=args.pictures,
            npy=args.npy,
            every=args.every,
            frames=args.frames,
            progress=None if new_bar is None else new_bar("predicting", "images"),
            shard=shard,
            world=world,
        )
    if not world.main:
        # The first process counts the failures of all; by another status torchrun would end it too early.
        return 0
    say(summary)
    if args.pictures and summary.written:
        say(f"pictures of all maps: {summary.out_dir / 'overview'}")
    return 0 if summary.ok else 1


def _split(words: list[str], out: str) -> tuple[str | None, list[str]]:
    """Return MODEL, None for the one that comes with dmtl, and the images."""
    from dmtl.models.pretrained import BUILTIN

    if not words:
        raise ConfigError("IMAGE must be at least one file or folder, got none")
    first, *others = words
    if not _names_model(first):
        for word in others:
            if (word == BUILTIN or os.path.isdir(word)) and _names_model(word):
                raise ConfigError(f"MODEL must come before the images, got {word} after {first}")
        if os.path.isdir(first):
            _check_images(first, out)
        return None, words
    if others:
        return first, others
    if first == BUILTIN:
        raise ConfigError(f"IMAGE must be at least one file or folder, got none after {first}")
    if not os.path.exists(first):
        raise ConfigError(f"{first}: no such file or folder, expected an image, a video or a folder of them")
    raise ConfigError(
        f"{first} is taken as MODEL, and no IMAGE follows it; if it holds images, pass {BUILTIN} {first}"
    )


def _check_images(folder: str, out: str) -> None:
    """Raise ConfigError unless a folder without a model has images: it may have been meant as MODEL."""
    from dmtl.predict.inputs import why_no_inputs

    if (reason := why_no_inputs(folder, out)) is not None:
        raise ConfigError(
            f"{folder}: is neither MODEL (no config.json) nor IMAGE ({reason}); "
            "pass the folder of one run or model, or a folder of images"
        )


def _names_model(word: str) -> bool:
    """Return whether the first word is MODEL."""
    from dmtl.models.pretrained import BUILTIN, holds_model
    from dmtl.predict.inputs import SUFFIXES

    if word == BUILTIN:  # also if it is a folder here, which `from_pretrained` refuses
        return True
    return holds_model(word) if os.path.isdir(word) else not word.lower().endswith(SUFFIXES)


def _shard(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise ConfigError(f"--shard must be K/N with K from 1 to N, such as 3/16, got {text!r}")
    return int(k), int(n)
