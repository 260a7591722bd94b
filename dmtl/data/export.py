"""Writes any data set in the folder format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from dmtl.data.base import LabelledImages
from dmtl.data.folder import read_description
from dmtl.data.image_io import write_png
from dmtl.data.label_maps import write_label
from dmtl.data.partial_labels import LabelMatrix
from dmtl.data.paths import inner_path, plain_name
from dmtl.errors import DataError
from dmtl.files import write_text


def export_folder(
    dataset: LabelledImages,
    out: str | os.PathLike,
    labels: LabelMatrix | None = None,
    *,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Writes `dataset` to the folder `out`; `Folder(out, dataset.split)` then reads the same values.

    Images become PNG, class ids PNG, numbers .npy. With `labels`, only what it shows is written. Another
    split may be added to a folder that declares the same tasks; existing files are never replaced. The
    list of the split is written last, so a folder that was cut short has no such split. Returns the
    folder. `progress` wraps the loop.
    """
    root = Path(out)
    listing = root / "splits" / f"{plain_name(dataset.split, 'export_folder: name of the split')}.txt"
    if listing.exists():
        raise DataError(f"{listing}: exists already, expected a new split or an empty folder")
    description = {"name": dataset.name, "tasks": {}}
    for name, task in dataset.tasks.items():
        description["tasks"][name] = {key: value for key, value in task.spec().items() if key != "name"}
    if (root / "dataset.yaml").exists():
        if read_description(root)["tasks"] != description["tasks"]:
            raise DataError(
                f"{root / 'dataset.yaml'}: declares other tasks, expected those of {dataset.name}"
            )
    else:
        write_text(root / "dataset.yaml", yaml.safe_dump(description, sort_keys=False))
    for index in progress(range(len(dataset))):
        id = inner_path(dataset.ids[index], "export_folder: id")
        shown = None if labels is None else [task for task in dataset.tasks if task in labels.tasks_of(id)]
        sample = dataset.read(index, shown)
        image = root / "images" / f"{id}.png"
        if image.exists():
            raise DataError(f"{image}: exists already, expected ids that differ between splits")
        write_png(image, sample.image.permute(1, 2, 0).numpy())
        for name, label in sample.labels.items():
            write_label(root / name / id, dataset.tasks[name], label)
    write_text(listing, "".join(f"{id}\n" for id in dataset.ids))
    return root
