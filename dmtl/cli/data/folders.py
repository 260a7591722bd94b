"""`dmtl data convert` and `export`: data sets written as folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dmtl.cli._arguments import check_at_least, positional
from dmtl.cli._common import console, say, table_of
from dmtl.cli._progress import bar

if TYPE_CHECKING:
    from dmtl.data.folder.write import Exported


@dataclass(frozen=True)
class Convert:
    """Write a benchmark, as its authors distribute it, as a folder to train on.

    Images are copied byte for byte, and labels read the same as before. After an interruption, the same
    command continues where it stopped.
    """

    source: Annotated[str, *positional("SOURCE")]
    """Folder of the benchmark."""
    out: Annotated[str, *positional("OUT")]
    """Folder to write, or to continue."""
    format: str | None = None
    """"pascal-context", "nyud-13", "nyud-40", "cityscapes-7", "cityscapes-19" or "cityscapes-raw"; default:
    what SOURCE looks like."""
    splits: list[str] = dataclasses.field(default_factory=lambda: ["train", "val"])
    """Splits to write."""
    skip_corrupt: int = 0
    """Number of samples of a split that may be skipped because they are unreadable."""
    workers: int = 0
    """Processes that read and write; 0: only this one."""


def convert(args: Convert) -> int:
    check_at_least(args, workers=0)
    from dmtl.data.benchmarks.detect import open_distribution
    from dmtl.data.folder.write import export_folder

    made: dict[str, Exported] = {}
    for split in args.splits:
        dataset = open_distribution(args.source, split, format=args.format)
        if not made:
            say(f"{args.source}: {dataset.format}, tasks {', '.join(dataset.tasks)}")
        progress = bar(f"{dataset.format} {split}")
        made[split] = export_folder(
            dataset, args.out, skip_corrupt=args.skip_corrupt, workers=args.workers, progress=progress
        )
    summarise(made)
    return 0


@dataclass(frozen=True)
class Export:
    """Write a data set as a folder: images, one folder per task, splits, dataset.yaml, manifest.jsonl. With
    --shards, write WebDataset shards instead.

    After an interruption, the same command continues where it stopped.
    """

    data: Annotated[str, *positional("DATA")]
    """"scenes", a folder with dataset.yaml, shards, or a configuration (.toml) with [[data.sources]]."""
    out: Annotated[str, *positional("OUT")]
    """Folder to write, or to continue."""
    split: str = "train"
    """Split to export."""
    shards: int | None = None
    """Write tar files of at most this size in MB, such as 256."""
    count: int | None = None
    """Maximum number of images."""
    size: tuple[int, int] | None = None
    """Height and width; default: as they are (scenes: 128 128)."""
    skip_corrupt: int = 0
    """Number of samples that may be skipped because they are unreadable."""
    workers: int = 0
    """Processes that read and write; 0: only this one."""


def export(args: Export) -> int:
    check_at_least(args, size=1, workers=0)
    from dmtl.data import export_folder, export_shards, open_dataset

    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    progress = bar(f"{dataset.name} {args.split}")
    options: dict = {"skip_corrupt": args.skip_corrupt, "workers": args.workers, "progress": progress}
    if args.shards is None:
        made = export_folder(dataset, args.out, **options)
    else:
        made = export_shards(dataset, args.out, args.shards, **options)
    summarise({args.split: made})
    return 0


def summarise(splits: Mapping[str, Exported]) -> None:
    """Print images, megabytes, labels and the share of their unlabelled pixels, by split."""
    columns: dict[str, list[str]] = {"task": list(next(iter(splits.values())).labels)}
    for split, made in splits.items():
        columns[split] = [str(made.labels[task]) for task in columns["task"]]
        for message in made.skipped:
            say(f"skipped: {message}")
        facts = f"{made.images} images, {made.written} of them written now, {made.size / 1e6:.1f} MB"
        if made.written:
            shares = (made.unknown[task] for task in columns["task"])
            columns[f"unlabelled pixels, {split}"] = [
                f"{part / all:.1%}" if all else "" for part, all in shares
            ]
        else:
            facts = f"all {made.images} images are there ({made.size / 1e6:.1f} MB), nothing to do"
        say(f"{made.folder} {split}: {facts}")
    names = (name.partition(",")[0] for name in columns)
    console.print(table_of(names, zip(*columns.values(), strict=True)))
