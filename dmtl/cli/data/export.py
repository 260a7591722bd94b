"""`dmtl data export`: any data set as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import positional
from dmtl.cli._common import bar
from dmtl.cli.data._written import summarise


@dataclass(frozen=True)
class Export:
    """Write a data set as a folder: images, one folder per task, splits, dataset.yaml, manifest.jsonl.

    It may be interrupted at any point: the same command goes on where it stopped.
    """

    data: Annotated[str, *positional("DATA")]
    """"scenes" or a folder with dataset.yaml."""
    out: Annotated[str, *positional("OUT")]
    """Folder to write, or to go on with."""
    split: str = "train"
    """Which split."""
    count: int | None = None
    """At most so many images."""
    size: tuple[int, int] | None = None
    """Height and width; default: as they are (scenes: 128 128)."""
    skip_corrupt: int = 0
    """Samples that may be left out because they cannot be read."""
    workers: int = 0
    """Processes that read and write; 0: one, this."""


def run(args: Export) -> int:
    from dmtl.data import export_folder, open_dataset

    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    progress = bar(f"{dataset.name} {args.split}")
    options = {"skip_corrupt": args.skip_corrupt, "workers": args.workers, "progress": progress}
    summarise({args.split: export_folder(dataset, args.out, **options)})
    return 0
