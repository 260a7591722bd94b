"""`dmtl data show`: what a data set looks like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmtl.cli._arguments import Source, check_at_least
from dmtl.cli._common import console, say, table_of
from dmtl.cli._progress import bar

if TYPE_CHECKING:
    from dmtl.data.base import LabelledImages


@dataclass(frozen=True)
class Show:
    """Print tasks and label counts, and write a page.

    The page shows samples with all labels coloured, which image has which label, shares of classes and ranges
    of values. If --out ends in .png, only a sheet of samples is written.
    """

    data: Source = "scenes"
    """"scenes", a folder with dataset.yaml, shards, a benchmark as distributed, or a configuration (.toml)
    with [[data.sources]]."""
    split: str = "train"
    """Split to show."""
    count: int = 8
    """Number of samples to show."""
    format: str | None = None
    """Format of a benchmark, if its folders fit several; the names are those of `dmtl data convert`."""
    out: str = "data.html"
    """The page (.html) or the sheet (.png) to write."""
    measured: int = 200
    """Number of images, evenly spread, for the page's statistics."""
    workers: int = 0
    """Processes that read images for the statistics; 0: only this one."""


def run(args: Show) -> int:
    check_at_least(args, count=1, measured=1, workers=0)
    from dmtl.data import open_dataset, summary
    from dmtl.errors import ConfigError

    kind = Path(args.out).suffix.lower()
    if kind not in (".html", ".png"):
        raise ConfigError(f"out: {args.out!r} is neither a page nor a picture, expected .html or .png")
    if Path(args.data).is_dir() and Path(args.out).resolve().is_relative_to(Path(args.data).resolve()):
        raise ConfigError(f"out: {args.out} is inside the data set {args.data}; choose another place")
    dataset = open_dataset(args.data, args.split, format=args.format)
    facts = summary(dataset)
    say(f"{facts['name']} {facts['split']}: {facts['images']} images")
    rows = ((name, task["kind"], str(task["exist"])) for name, task in facts["tasks"].items())
    console.print(table_of(("task", "kind", "labels"), rows, left=3))
    if dataset.sources:
        tables = dataset.available().of_sources(dataset.sources).items()
        sources = ((name, str(len(t)), *map(str, t.statistics()["per_task"].values())) for name, t in tables)
        console.print(table_of(("source", "images", *dataset.tasks), sources))
    if kind == ".png":
        write_sheet(dataset, args.count, args.out)
        say(f"wrote {args.out} (image, {', '.join(dataset.tasks)})")
        return 0
    from dmtl.report.html.dataset import dataset_report

    options = {"count": args.count, "measured": args.measured, "workers": args.workers}
    dataset_report(dataset, args.out, **options, progress=bar("reading"))
    say(f"wrote {args.out}")
    return 0


def write_sheet(dataset: LabelledImages, count: int, out: str) -> None:
    """Write evenly spread images of the split, one row each: the image and its labels."""
    import numpy as np
    from PIL import Image

    from dmtl.data.loading.order import evenly
    from dmtl.runtime.files import write_atomically
    from dmtl.tasks.palette import GREY
    from dmtl.tasks.sheet import sheet

    pictures = []
    for index in evenly(len(dataset), count):
        sample = dataset.read(index)
        image = sample.image.permute(1, 2, 0).numpy()
        pictures.append((sample.id, image))
        for name, task in dataset.tasks.items():
            label = sample.labels.get(name)
            pictures.append((name, np.full_like(image, GREY) if label is None else task.label_picture(label)))
    page = sheet(pictures, 1 + len(dataset.tasks))
    write_atomically(out, lambda path: Image.fromarray(page).save(path, "PNG"))
