"""`dmtl predict`: maps and pictures for image files, video files and folders."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import bars, say
from dmtl.errors import ConfigError


@dataclass(frozen=True)
class Predict:
    """Predict every task for images of any size and for videos.

    Writes OUT/<task>/<name>.png (class ids, probabilities, 16-bit depth, normals), OUT/pictures, OUT/overview
    and OUT/maps.json, which says how to read the maps. The maps of a video's frames are
    OUT/<task>/<name>/<frame>.png, its pictures are videos again (this needs PyAV: dmtl[video]). An unreadable
    file is reported at the end; the others are done. What a folder has besides images and videos is left out
    and counted, earlier outputs of this command too.

    The same command again continues what was interrupted and predicts new inputs. Several processes or GPUs
    share the inputs: `torchrun --nproc-per-node 8 -m dmtl predict ...`
    """

    model: Annotated[str, *positional("MODEL")]
    """A run's folder, a model folder, a published file, or an id on the Hub (org/name)."""
    images: Annotated[list[str], *positional("IMAGE ...")]
    """Image files, video files and folders."""
    out: str = "predictions"
    """Folder to write."""
    tasks: list[str] | None = None
    """Tasks to predict; default: all."""
    steps: int | Literal["auto"] | None = None
    """Denoising steps, or "auto": until the maps no longer change; default: as trained."""
    sampler: str | None = None
    """How the chain steps: "ancestral", "ddim", "dpmpp_2m" or a registered one; default: as trained."""
    samples: int = 1
    """Noise samples to average; with 2 or more, OUT/uncertainty shows where they differ."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """"auto" is fp32 on a CPU and bf16 on a GPU."""
    batch_size: int | None = None
    """Images of equal size to compute together; default: 1 on a CPU, up to 8 on a GPU."""
    tile: int | None = None
    """Side in pixels of the tiles of large images; 0: never; default: only if memory would not suffice."""
    every: int = 1
    """Predict only every N-th frame of a video."""
    frames: int | None = None
    """Predict at most N frames of a video."""
    pictures: bool = True
    """Also write coloured pictures and an overview sheet per image, or videos of them."""
    npy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also write unit vectors as float16 arrays."""
    shard: str = "1/1"
    """K/N: predict the K-th of N parts of the inputs; the last to finish writes OUT/maps.json for all."""
    seed: int = 0
    """Seed of the chain's noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Predict, arguments, "predict")
    from dmtl.predict.predictor import Predictor
    from dmtl.runtime.distributed import connect

    if not args.images:
        raise ConfigError("IMAGE must be at least one file or folder, got none")
    shard = _shard(args.shard)
    world = connect(args.device)
    predictor = Predictor(
        args.model,
        world.device,
        steps=args.steps,
        sampler=args.sampler,
        tasks=args.tasks,
        seed=args.seed,
        samples=args.samples,
        precision=args.precision,
        batch_size=args.batch_size,
        tile=args.tile,
    )
    with bars(stderr=True) if world.main else nullcontext() as new_bar:
        summary = predictor.predict_files(
            args.images,
            args.out,
            pictures=args.pictures,
            npy=args.npy,
            every=args.every,
            frames=args.frames,
            progress=None if new_bar is None else new_bar("predicting"),
            shard=shard,
            world=world,
        )
    if not world.main:
        # The first process counts the failures of all; by another status torchrun would end it too early.
        return 0
    say(summary)
    return 0 if summary.ok else 1


def _shard(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise ConfigError(f"--shard must be K/N with K from 1 to N, such as 3/16, got {text!r}")
    return int(k), int(n)
