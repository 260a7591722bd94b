"""`dmtl data convert`: a benchmark, as its authors distribute it, as a folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import positional
from dmtl.cli._common import bar, say
from dmtl.cli.data._written import summarise


@dataclass(frozen=True)
class Convert:
    """Write a benchmark, as its authors distribute it, as a folder to train on.

    Images are copied byte for byte, labels keep their values. It may be interrupted at any point: the same
    command goes on where it stopped.
    """

    source: Annotated[str, *positional("SOURCE")]
    """Folder of the benchmark."""
    out: Annotated[str, *positional("OUT")]
    """Folder to write, or to go on with."""
    format: str | None = None
    """"pascal-context", "nyud-13", "nyud-40", "cityscapes-7", "cityscapes-19" or "cityscapes-raw"; default:
    what SOURCE looks like."""
    splits: list[str] = dataclasses.field(default_factory=lambda: ["train", "val"])
    """Splits to write."""
    skip_corrupt: int = 0
    """Samples of a split that may be left out because they cannot be read."""
    workers: int = 0
    """Processes that read and write; 0: one, this."""


def run(args: Convert) -> int:
    from dmtl.data.benchmarks.detect import open_distribution
    from dmtl.data.folder.write import export_folder

    made = {}
    for split in args.splits:
        dataset = open_distribution(args.source, split, format=args.format)
        if not made:
            say(f"{args.source}: {dataset.format}, tasks {', '.join(dataset.tasks)}")
        made[split] = export_folder(
            dataset,
            args.out,
            skip_corrupt=args.skip_corrupt,
            workers=args.workers,
            progress=bar(f"{dataset.format} {split}"),
        )
    summarise(made)
    return 0
