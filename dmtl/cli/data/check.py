"""`dmtl data check`: what is wrong with a data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dmtl.cli._common import console, say
from dmtl.cli.data._source import Source


@dataclass(frozen=True)
class Check:
    """Read everything and list what is wrong: damaged files, sizes, class ids, ranges, duplicates.

    The exit status is 1 if anything is.
    """

    data: Source = "scenes"
    """"scenes" or a folder with dataset.yaml."""
    splits: list[str] = dataclasses.field(default_factory=lambda: ["train", "val"])
    """Splits to read."""
    count: int | None = None
    """At most so many images per split."""


def run(args: Check) -> int:
    from rich.progress import track

    from dmtl.data import check_dataset, open_dataset

    splits = [open_dataset(args.data, split, count=args.count) for split in args.splits]
    problems = []
    for i, dataset in enumerate(splits):
        problems += check_dataset(
            dataset,
            splits[:i],
            progress=lambda x, d=dataset: track(x, f"{d.name} {d.split}", console=console),
        )
    if not problems:
        say(f"{args.data}: {sum(map(len, splits))} images in {', '.join(args.splits)}, nothing wrong")
        return 0
    for problem in problems:
        say(problem)
    say(f"{args.data}: {len(problems)} problems")
    return 1
