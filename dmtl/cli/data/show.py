"""`dmtl data show`: what a data set looks like."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from dmtl.cli._common import console, say
from dmtl.cli.data._source import Source


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


def run(args: Show) -> int:
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
