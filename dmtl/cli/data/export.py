"""`dmtl data export`: any data set as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import positional
from dmtl.cli._common import console, say


@dataclass(frozen=True)
class Export:
    """Write a data set as a folder: images, one folder per task, splits, dataset.yaml."""

    data: Annotated[str, *positional("DATA")]
    """"scenes" or a folder with dataset.yaml."""
    out: Annotated[str, *positional("OUT")]
    """Folder to write."""
    split: str = "train"
    """Which split."""
    count: int | None = None
    """At most so many images."""
    size: tuple[int, int] | None = None
    """Height and width; default: as they are (scenes: 128 128)."""


def run(args: Export) -> int:
    from rich.progress import track

    from dmtl.data import export_folder, open_dataset

    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    export_folder(dataset, args.out, progress=lambda x: track(x, "writing", console=console))
    say(f"wrote {args.out} ({len(dataset)} images)")
    return 0
