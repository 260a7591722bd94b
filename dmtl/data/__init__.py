"""Labelled images: data sets, partial labels, joint transforms and the loader.

`open_dataset` opens one by name or path. The parts load when they are first used, so importing this is light.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dmtl.errors import DataError

if TYPE_CHECKING:
    from dmtl.data.base import LabelledImages

_HOME = {
    "LabelledImages": "base",
    "Sample": "base",
    "LabelMatrix": "labels.matrix",
    "read_split_table": "labels.published",
    "Folder": "folder.dataset",
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
    "open_distribution": "benchmarks.detect",
}
__all__ = ["open_dataset", *_HOME]


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
    """A data set: `"scenes"` (rendered, needs no files), the path of a folder with a `dataset.yaml`, or that
    of a benchmark as its authors distribute it.

    Args:
        split: "train", "val", ... as the data set has them.
        tasks: names of the tasks wanted; None: all it has.
        size: (height, width) of the images; None: as they are (scenes: their default).
        count: at most so many images; None: all (scenes: their default).
        seed: of the rendered scenes.
        format: of a benchmark (`dmtl.data.benchmarks.detect.FORMATS`); None: told by the names in the folder.

    Errors: DataError that lists what is known.
    """
    name = os.fspath(name_or_path)
    if name == "scenes":
        from dmtl.data.scenes import Scenes

        options = {key: value for key, value in (("count", count), ("size", size)) if value is not None}
        return Scenes(split, seed=seed, tasks=tasks, **options)
    folder = "a folder with images/, splits/ and dataset.yaml"
    if not os.path.isdir(name):
        raise DataError(f"{name}: no such data set, expected 'scenes' or {folder}")
    from dmtl.data.benchmarks.detect import FORMATS, detect, holds, open_distribution
    from dmtl.data.folder.dataset import Folder
    from dmtl.data.loading.wrappers import Resized, Subset

    dataset: LabelledImages
    if format is None and os.path.exists(os.path.join(name, "dataset.yaml")):
        dataset = Folder(name, split, tasks)
    else:
        format = detect(name) if format is None else format
        if format is None:
            raise DataError(f"{name}: {holds(name)}, expected {folder}, or one of {', '.join(FORMATS)}")
        dataset = open_distribution(name, split, tasks, format)
    if count is not None:
        if count < 1:
            raise DataError(f"open_dataset: count must be at least 1, got {count}")
        dataset = Subset(dataset, range(min(count, len(dataset))))
    return dataset if size is None else Resized(dataset, size)
