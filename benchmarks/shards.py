"""`python -m benchmarks.shards FOLDER`: compare images per second from a folder and from its shards, with a
cold cache.

FOLDER is a data set in the folder format, with more images than a disk reads in a second. Its shards are
written to --out, on the same disk. Before each epoch, the pages of all files are dropped from the cache. Both
must give the same samples, which is checked. Epochs take turns, and medians and their ratio are printed as
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch

from dmtl.data import LabelledImages, export_shards, make_loader, open_dataset, train_transform


def drop(folder: Path) -> int:
    """Drop the pages of all files below a folder from the cache; return the size of the files in bytes."""
    size = 0
    for path in filter(Path.is_file, folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # dirty pages stay otherwise
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            size += os.fstat(handle).st_size
        finally:
            os.close(handle)
    return size


def check(ours: LabelledImages, theirs: LabelledImages, indices: Iterable[int]) -> None:
    """Exit with an error unless both data sets give the same samples."""
    for index in indices:
        a, b = ours.read(index), theirs.read(index)
        same = a.id == b.id and torch.equal(a.image, b.image) and a.labels.keys() == b.labels.keys()
        if not same or not all(a.labels[t].equal(b.labels[t]) for t in a.labels):
            raise SystemExit(f"image {index} differs: {a.id} and {b.id}")


def epoch_seconds(data: LabelledImages, workers: int, epoch: int, size: tuple[int, int]) -> float:
    """Time one epoch of the training loader, including the start of its processes."""
    started = time.perf_counter()
    for _ in make_loader(
        data, transform=train_transform(size), batch_size=8, workers=workers, epoch=epoch, drop_last=False
    ):
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--out", type=Path, help="folder for the shards; default: a temporary one next to FOLDER"
    )
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, nargs=2, default=[128, 160])
    args = parser.parse_args()
    source = open_dataset(args.folder, args.split)
    with tempfile.TemporaryDirectory(dir=args.folder.resolve().parent) as temporary:
        out = args.out or Path(temporary)
        made = export_shards(source, out, args.megabytes)
        places = {"folder": args.folder, "shards": out}
        check(source, open_dataset(made, args.split), range(0, len(source), max(1, len(source) // 50)))
        for workers in args.workers:
            rates: dict[str, list[float]] = {name: [] for name in places}
            for number in range(args.rounds):
                for name in sorted(places, reverse=bool(number % 2)):
                    size = drop(places[name])
                    data = open_dataset(args.folder if name == "folder" else made, args.split)
                    seconds = epoch_seconds(data, workers, number, tuple(args.size))
                    rates[name].append(len(data) / seconds)
            row = {name: round(median(values), 1) for name, values in rates.items()}
            row |= {
                "ratio": round(row["shards"] / row["folder"], 3),
                "workers": workers,
                "images": len(source),
            }
            print(json.dumps({**row, "unit": "images/s", "bytes": size, "rounds": args.rounds}), flush=True)


if __name__ == "__main__":
    main()
