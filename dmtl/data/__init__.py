"""Labelled images: data sets, partial labels, joint transforms and the loader.

`open_dataset` opens one by name or path. The parts load when they are first used, so importing this is light.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dmtl.errors import DataError, did_you_mean
from dmtl.registry import Registry

if TYPE_CHECKING:
    from dmtl.data.base import LabelledImages
    from dmtl.data.sources import Joined, Source

DATASETS: Registry[Callable[..., LabelledImages]] = Registry(
    "data set", {"scenes": "dmtl.data.scenes:Scenes"}
)
"""Functions `f(split, tasks=names or None)` that open a data set, by the name that `open_dataset` accepts.

A function with a true attribute `to_order` makes any number of images of any size. It is also called with
`seed`, and with `count` and `size` if they are not None.
"""

_HOME = {
    "LabelledImages": "base",
    "Sample": "base",
    "LabelMatrix": "labels.matrix",
    "read_split_table": "labels.published",
    "Folder": "folder.dataset",
    "Shards": "shards.dataset",
    "Scenes": "scenes",
    "Cached": "loading.wrappers",
    "DiskCached": "loading.disk_cache",
    "Resized": "loading.wrappers",
    "Subset": "loading.wrappers",
    "Batch": "loading.batch",
    "Loader": "loading.loader",
    "make_loader": "loading.loader",
    "train_transform": "loading.transforms",
    "eval_transform": "loading.transforms",
    "check_dataset": "folder.check",
    "summary": "folder.check",
    "export_folder": "folder.write",
    "export_shards": "shards.write",
    "open_distribution": "benchmarks.detect",
    "Source": "sources",
}
__all__ = ["DATASETS", "made_to_order", "open_dataset", "open_sources", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def open_dataset(
    name_or_path: str | os.PathLike,
    split: str,
    *,
    tasks: Iterable[str] | None = None,
    size: tuple[int, int] | None = None,
    count: int | None = None,
    seed: int = 0,
    format: str | None = None,
) -> LabelledImages:
    """Open one split of a data set.

    Args:
        name_or_path: `"scenes"` (rendered, needs no files) or another registered name; the path of a folder
            with a `dataset.yaml`, or of a benchmark as its authors distribute it; the path or URL of shards,
            such as `"DIR/{000000..000127}.tar"`; or a configuration (.toml) with `[[data.sources]]`.
        split: a split of the data set, such as "train" or "val".
        tasks: names of the tasks to use; None: all tasks of the data set.
        size: (height, width) of the images; None: their own size (scenes: the default size).
        count: maximum number of images, of each source if there are several; None: all (scenes: the default
            number).
        seed: seed of rendered scenes; other data sets ignore it.
        format: format of a benchmark (`dmtl.data.benchmarks.detect.FORMATS`); None: inferred from its
            folders.

    Raises:
        DataError: there is no such data set, format, split or task; the message lists the known ones.
    """
    name = os.fspath(name_or_path)
    if made_to_order(name):
        options = {key: value for key, value in (("count", count), ("size", size)) if value is not None}
        return DATASETS.get(name)(split, seed=seed, tasks=tasks, **options)
    from dmtl.data.loading.wrappers import Resized, Subset

    if count is not None and count < 1:
        raise DataError(f"open_dataset: count must be at least 1, got {count}")
    if name.endswith(".toml"):
        from dmtl.data.sources import read_sources

        joined = open_sources(read_sources(name), split, tasks=tasks, size=size, count=count)
        return joined if size is None else Resized(joined, size)
    dataset = (
        DATASETS.get(name)(split, tasks=tasks) if name in DATASETS else _on_disk(name, split, tasks, format)
    )
    if count is not None:
        dataset = Subset(dataset, range(min(count, len(dataset))))
    return dataset if size is None else Resized(dataset, size)


def open_sources(
    sources: Sequence[Source],
    split: str,
    *,
    tasks: Iterable[str] | None = None,
    size: tuple[int, int] | None = None,
    count: int | None = None,
    made: int | None = None,
) -> Joined:
    """Open several data sets as one (`dmtl.data.sources`).

    Args:
        sources: the data sets; their names must differ.
        split: the split to open; every source must have it.
        tasks: names of the tasks to use, after renaming; None: all.
        size: (height, width) of rendered images; images from files keep their size.
        count: maximum number of images of each source; None: all.
        made: number of images of each rendered source; None: `count`, or the source's default.

    Raises:
        ConfigError: two sources disagree about a task, or a task to drop or rename is unknown.
        DataError: a source violates its format, or a task is unknown.
    """
    from dmtl.data.sources import Joined, Part, check_names

    check_names(sources)

    def opened(root: str) -> LabelledImages:
        if made_to_order(root):
            return open_dataset(root, split, size=size, count=count if made is None else made)
        return open_dataset(root, split, count=count)

    return Joined([Part(opened(source.root), source) for source in sources], tasks)


def made_to_order(name_or_path: str | os.PathLike) -> bool:
    """Return whether a data set makes images of any number and size, as `"scenes"` does."""
    name = os.fspath(name_or_path)
    return name in DATASETS and getattr(DATASETS.get(name), "to_order", False)


def _on_disk(path: str, split: str, tasks: Iterable[str] | None, format: str | None) -> LabelledImages:
    """Open a folder with a `dataset.yaml`, shards, or a benchmark as distributed."""
    folder = "a folder with images/, splits/ and dataset.yaml"
    from dmtl.data.shards.member import is_shards

    if is_shards(path):
        from dmtl.data.shards.dataset import Shards

        return Shards(path, split, tasks)
    if not os.path.isdir(path):
        hint = did_you_mean(path, DATASETS.names(), " (", ")")
        raise DataError(
            f"{path}: no such data set{hint}, expected {' or '.join(map(repr, DATASETS.names()))} or {folder}"
        )
    from dmtl.data.benchmarks.detect import FORMATS, detect, holds, open_distribution
    from dmtl.data.folder.dataset import Folder

    if format is None and os.path.exists(os.path.join(path, "dataset.yaml")):
        return Folder(path, split, tasks)
    format = detect(path) if format is None else format
    if format is None:
        raise DataError(f"{path}: {holds(path)}, expected {folder}, or one of {', '.join(FORMATS)}")
    return open_distribution(path, split, tasks, format)
