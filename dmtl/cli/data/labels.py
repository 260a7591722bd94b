"""`dmtl data labels`: choose which labels may be seen, or convert a published choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.box import SIMPLE

from dmtl.cli._arguments import positional
from dmtl.cli._common import console, say, table_of
from dmtl.errors import ConfigError
from dmtl.text import plural

if TYPE_CHECKING:
    from dmtl.data import LabelMatrix


@dataclass(frozen=True)
class Labels:
    """Choose which labels training may see, and write them as a CSV file for `data.labels`.

    `dmtl data labels DATA` gives every image the label of one task, all tasks equally often. With
    `--setting random-labels` every label is kept with probability `--p`, at least one per image. The choice
    depends only on seed, id and task: it is the same on every machine, in any order.

    `dmtl data labels DATA --from FILE` reads a split published with MTPSL or DiffusionMTL (.pth, .npy), or a
    CSV file, and keeps the labels that DATA has. Without DATA the whole file is converted. If the file has no
    image names, they are "train/0", "train/1"..., as in converted NYUD-v2 and Cityscapes.
    """

    data: Annotated[str | None, *positional("[DATA]")] = None
    """"scenes", a folder with dataset.yaml, shards, or a configuration (.toml) with [[data.sources]];
    default: "scenes", or none with --from."""
    setting: str = "one-label"
    """"one-label", "random-labels" or "full"."""
    p: list[str] = field(default_factory=list)
    """For "random-labels": the probability of a label, as one number, as one for each task ("edge=0.1
    semseg=0.8"), or as both; the plain number is then for all other tasks. Default: 0.5."""
    seed: int = 0
    """Seed of the choice."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Convert this file instead: a published table of labels or a CSV file."""
    tasks: list[str] | None = None
    """Tasks to choose among, or to read from the file of --from. If the columns of that file have no names:
    their names in order. Default: all tasks, and the published names."""
    split: str = "train"
    """Split to choose labels for."""
    count: int | None = None
    """Maximum number of images."""
    out: str = "labels.csv"
    """The file to write; it must not exist with other content."""


def run(args: Labels) -> int:
    if args.p and (args.setting != "random-labels" or args.source is not None):
        raise ConfigError("--p can only be used with --setting random-labels")
    if args.setting not in ("one-label", "random-labels", "full"):
        raise ConfigError(
            '--setting must be "one-label", "random-labels" or "full" (--from takes files), '
            f"got {args.setting!r}"
        )
    labels = _converted(args, args.source) if args.source is not None else _chosen(args)
    _refuse_to_overwrite(args.out, labels)
    labels.write_csv(args.out)
    _show(labels)
    say(f"wrote {args.out}")
    return 0


def _refuse_to_overwrite(out: str, labels: LabelMatrix) -> None:
    """Raise ConfigError if the file holds anything else than these labels: it may have been edited."""
    path = Path(out)
    if path.is_file() and path.read_bytes() != labels.csv_text().encode():
        raise ConfigError(f"{out}: exists with other content; choose another --out, or delete the file")


def _converted(args: Labels, source: str) -> LabelMatrix:
    from dmtl.data import open_dataset
    from dmtl.data.labels.published import read_split_table

    table = read_split_table(source, args.tasks)
    if args.data is None:
        return table
    dataset = open_dataset(args.data, args.split, tasks=args.tasks, count=args.count)
    return dataset.available().intersect(table)


def _chosen(args: Labels) -> LabelMatrix:
    from dmtl.data import LabelMatrix, open_dataset
    from dmtl.data.labels.choose import choose_labels

    dataset = open_dataset(args.data or "scenes", args.split, tasks=args.tasks, count=args.count)
    if args.p:
        tasks = list(dataset.tasks)
        return LabelMatrix.random_labels(
            dataset.ids, tasks, args.seed, p=_probabilities(args.p, tasks), available=dataset.available()
        )
    return choose_labels(dataset, args.setting, args.seed)


def _probabilities(words: Iterable[str], tasks: list[str]) -> dict[str, float]:
    """ "0.5", "edge=0.1"... as one probability for each task."""
    given: dict[str, float] = {}
    for word in words:
        task, _, number = word.rpartition("=")
        if task and task not in tasks:
            raise ConfigError(f"p names {task!r}, which is not a task of the data ({', '.join(tasks)})")
        try:
            given[task] = float(number)
        except ValueError:
            raise ConfigError(f"p must be numbers or task=number, got {word!r}") from None
        if not 0 <= given[task] <= 1:
            raise ConfigError(f"p must be from 0 to 1, got {word!r}")
    rest = given.pop("", 0.5)
    chosen = {task: given.get(task, rest) for task in tasks}
    if not any(chosen.values()):
        raise ConfigError("p must be above 0 for one task at least")
    return chosen


def _show(labels: LabelMatrix) -> None:
    """Print the labels of each task, images that have two tasks, and images by their number of labels."""
    facts, pairs = labels.statistics(), labels.pairs()
    say(f"{plural(facts['labels'], 'label')} for {plural(facts['images'], 'image')}")
    rows = []
    for row, task in enumerate(labels.tasks):
        share = pairs[row, row] / max(1, facts["images"])
        both = ["" if column == row else str(pairs[row, column]) for column in range(len(labels.tasks))]
        rows.append((task, str(pairs[row, row]), f"{share:.0%}", *both))
    heads = ("task", "labels", "share", *labels.tasks)
    table = table_of(heads, rows, box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.title, table.title_justify = "On the right: images with both labels", "center"
    table.columns[0].no_wrap = True
    for column in table.columns[3:]:
        column.overflow = "fold"
    console.print(table)
    counts = (f"{images} with {number}" for number, images in facts["labels_per_image"].items())
    say(f"Images by their number of labels: {', '.join(counts)}")
