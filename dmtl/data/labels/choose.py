"""Choose which labels training may see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmtl.data.base import LabelledImages
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.labels.published import read_split_table
from dmtl.errors import ConfigError

GENERATED = ("one-label", "random-labels")
LABEL_FILES = (".csv", ".pth", ".npy")


def choose_labels(
    dataset: LabelledImages,
    setting: str,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    among: LabelledImages | None = None,
) -> LabelMatrix:
    """Return the labels that training may see, for the images and tasks of `dataset`.

    Args:
        dataset: the data set.
        setting: "one-label", "random-labels", "full" or the name of a file (`read_split_table`).
        seed: seed of a generated choice.
        tasks: names of the tasks in a file.
        among: the data set over whose tasks a choice is generated: it has the same images and may have more
            tasks. None: `dataset`.

    Raises:
        ConfigError: `setting` is neither known nor a file.
        DataError: the file is damaged.
    """
    among = dataset if among is None else among
    if setting == "full":
        return dataset.available()
    if setting in GENERATED:
        make = LabelMatrix.one_label if setting == "one-label" else LabelMatrix.random_labels
        labels = make(among.ids, list(among.tasks), seed, available=among.available())
        return labels.subset(dataset.ids, list(dataset.tasks))
    if Path(setting).suffix in LABEL_FILES or Path(setting).is_file():
        return dataset.available().intersect(_read_table(setting, tasks, dataset))
    raise ConfigError(
        'data.labels must be "one-label", "random-labels", "full" or the name of a '
        f"{', '.join(LABEL_FILES)} file, got {setting!r}"
    )


def _read_table(path: str, tasks: Sequence[str] | None, dataset: LabelledImages) -> LabelMatrix:
    """Read a table of visible labels. If its rows have no names, they are the training images in order."""
    table = read_split_table(path, tasks)
    unnamed = table.ids == [f"train/{row}" for row in range(len(table.ids))]
    if unnamed and not set(dataset.ids) & set(table.ids):
        return read_split_table(path, tasks, dataset.ids)
    return table
