"""`dmtl data`: look at a data set, check it, choose labels, export."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from rich.table import Table

from dmtl.cli._arguments import parse_subcommand, positional
from dmtl.cli._common import console, say

Source = Annotated[str, *positional("[DATA]")]


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


@dataclass(frozen=True)
class Show:
    """Print tasks and label counts, and write a sheet of samples with all labels coloured."""

    data: Source = "scenes"
    """"scenes" or a folder with dataset.yaml."""
    split: str = "train"
    """Which split."""
    count: int = 8
    """Samples on the sheet."""
    out: str = "samples.png"
    """The picture to write."""


@dataclass(frozen=True)
class Labels:
    """Choose which labels may be seen and write them as a CSV file for `data.labels`."""

    data: Source = "scenes"
    """"scenes" or a folder with dataset.yaml."""
    setting: str = "one-label"
    """"one-label", "random-labels" or "full"."""
    seed: int = 0
    """Seed of the choice."""
    split: str = "train"
    """Which split."""
    count: int | None = None
    """Images of `scenes`."""
    out: str = "labels.csv"
    """The file to write."""


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


def main(arguments: list[str]) -> int:
    command = parse_subcommand(
        {"check": Check, "show": Show, "labels": Labels, "export": Export},
        arguments,
        "data",
        description="Look at a data set, check it, choose labels, export it.",
    )
    return {Check: _check, Show: _show, Labels: _labels, Export: _export}[type(command)](command)


def _check(args: Check) -> int:
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


def _show(args: Show) -> int:
    import numpy as np
    from PIL import Image

    from dmtl.data import open_dataset, summary
    from dmtl.data.check import picture_row
    from dmtl.files import write_atomically

    dataset = open_dataset(args.data, args.split)
    facts = summary(dataset)
    table = Table(
        "task",
        "kind",
        "labels",
        title=f"{facts['name']} {facts['split']}: {facts['images']} images",
        title_justify="left",
    )
    for name, task in facts["tasks"].items():
        table.add_row(name, task["kind"], str(task["exist"]))
    console.print(table)
    rows = [picture_row(dataset.read(i), dataset.tasks) for i in range(min(args.count, len(dataset)))]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate(
        [np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )
    write_atomically(args.out, lambda path: Image.fromarray(sheet).save(path, "PNG"))
    say(f"wrote {args.out} (image, {', '.join(dataset.tasks)})")
    return 0


def _labels(args: Labels) -> int:
    from dmtl.data import open_dataset
    from dmtl.train.config import DataConfig
    from dmtl.train.setup import choose_labels

    dataset = open_dataset(args.data, args.split, count=args.count)
    labels = choose_labels(DataConfig(root=args.data, labels=args.setting, label_seed=args.seed), dataset)
    labels.write_csv(args.out)
    facts = labels.statistics()
    say(
        f"{facts['labels']} labels for {facts['images']} images: "
        + ", ".join(f"{task} {n}" for task, n in facts["per_task"].items())
    )
    say(f"wrote {args.out}")
    return 0


def _export(args: Export) -> int:
    from rich.progress import track

    from dmtl.data import export_folder, open_dataset

    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    export_folder(dataset, args.out, progress=lambda x: track(x, "writing", console=console))
    say(f"wrote {args.out} ({len(dataset)} images)")
    return 0
