"""`dmtl data labels`: choose which labels may be seen."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.cli._common import say
from dmtl.cli.data._source import Source


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


def run(args: Labels) -> int:
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
