"""The data set that the readers of annotation formats return; it draws label maps when samples are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dmtl.data.base import LabelledImages, Sample
from dmtl.data.folder.paths import inner_path, nfc
from dmtl.data.images import read_image, read_label_image, turned_hint
from dmtl.data.imports.legend import IGNORE, VOID, Legend
from dmtl.data.imports.shapes import Shape
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError
from dmtl.tasks import Task


@dataclass(frozen=True)
class Drawing:
    """A label map that is drawn from shapes.

    Attributes:
        shapes: (label, shape) pairs in drawing order: later ones cover earlier ones.
        where: file and entry, for messages.
        size: (height, width) of the image that the shapes were drawn on; None if the format does not say.
    """

    shapes: Sequence[tuple[str, Shape]]
    where: str
    size: tuple[int, int] | None = None

    def labels(self) -> Iterable[str]:
        """Return the labels of the shapes."""
        return (label for label, _ in self.shapes if label != VOID)

    def draw(self, size: tuple[int, int], legend: Legend) -> np.ndarray:
        """Draw the label map of an image of `size` = (height, width): class ids, uint8 [H, W].

        Raises:
            DataError: the shapes were drawn on an image of another size, or do not fit this one.
        """
        if self.size is not None:
            _check_size(self.size, size, self.where)
        ids = np.full(size, legend.rest, np.uint8)
        for number, (label, shape) in enumerate(self.shapes):
            value = IGNORE if label == VOID else legend.ids[label]
            if value is None:
                continue
            try:
                shape.paint(ids, value)
            except DataError:
                raise
            except ValueError as error:
                name = f"shape {number + 1} ({label!r})" if label else f"shape {number + 1}"
                raise DataError(f"{self.where}: {name}: {error}") from None
        return ids


@dataclass(frozen=True)
class ValueMap:
    """A label map in an image file, in which each pixel value means a label.

    Attributes:
        path: the file.
        values: pixel value -> label.
    """

    path: Path
    values: Mapping[int, str]

    def labels(self) -> Iterable[str]:
        """Return the labels that the values can mean."""
        return (label for label in self.values.values() if label != VOID)

    def stored(self) -> np.ndarray:
        """Return one value for each pixel, whole numbers [H, W]."""
        stored = read_label_image(self.path)
        if stored.ndim != 2 or stored.dtype.kind != "u":
            raise DataError(f"{self.path}: colours or fractions, expected one whole number for each pixel")
        return stored

    def draw(self, size: tuple[int, int], legend: Legend) -> np.ndarray:
        """Return class ids, uint8 [H, W]; see `Drawing.draw`."""
        stored = self.stored()
        _check_size((stored.shape[0], stored.shape[1]), size, str(self.path))
        found, places = np.unique(stored, return_inverse=True)
        if unknown := [value for value in found.tolist() if value not in self.values]:
            raise DataError(f"{self.path}: no label has the {self.called(unknown[0])}")
        names = [self.values[value] for value in found.tolist()]
        ids = [None if name == VOID else legend.ids[name] for name in names]
        table = np.array([IGNORE if i is None else i for i in ids], np.uint8)
        return table[places].reshape(stored.shape)

    def called(self, value: int) -> str:
        """Describe a value in a message."""
        return f"value {value}"


@dataclass
class Entry:
    """One annotated image.

    Attributes:
        id: its name in the data set.
        image: path of the image file.
        where: annotation file and entry, for messages.
        labels: task -> label map; a task without a label is missing.
        split: name of the split; "" if the format has no splits.
    """

    id: str
    image: Path
    where: str
    labels: dict[str, Drawing | ValueMap] = field(default_factory=dict)
    split: str = ""


class Annotated(LabelledImages):
    """A data set whose label maps are drawn from annotations when a sample is read."""

    def __init__(
        self,
        name: str,
        split: str,
        tasks: dict[str, Task],
        entries: Sequence[Entry],
        legends: Mapping[str, Legend],
    ):
        super().__init__(name, split, tasks, [entry.id for entry in entries])
        self.entries, self.legends = list(entries), dict(legends)

    def available(self) -> LabelMatrix:
        shown = [[task in entry.labels for task in self.tasks] for entry in self.entries]
        return LabelMatrix(
            self.ids, list(self.tasks), np.array(shown, bool).reshape(len(self.ids), len(self.tasks))
        )

    def image_file(self, index: int) -> Path:
        return self.entries[index].image

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        entry = self.entries[index]
        try:
            sample = Sample(entry.id, read_image(entry.image))
        except DataError as error:
            raise DataError(f"{entry.where}: {error}") from None
        for task in self.wanted(tasks):
            if task in entry.labels:
                try:
                    ids = entry.labels[task].draw(sample.size, self.legends[task])
                except SizeError as error:
                    hint = turned_hint(entry.image, error.found, sample.size)
                    hint = hint and f" as viewers show it: {hint}"
                    raise DataError(f"{error} {entry.image}{hint}") from None
                sample.labels[task] = torch.from_numpy(ids)[None]
        return sample


class SizeError(DataError):
    """A label has another size than its image. `Annotated.read` appends the image's name to the message."""

    def __init__(self, found: tuple[int, int], size: tuple[int, int], where: str):
        super().__init__(
            f"{where}: drawn on {found[1]}x{found[0]} pixels, expected the {size[1]}x{size[0]} of"
        )
        self.found = found


def _check_size(found: tuple[int, int], size: tuple[int, int], where: str) -> None:
    if found != size:
        raise SizeError(found, size, where)


def check_entries(source: Path, entries: Sequence[Entry], may_lack: int) -> None:
    """Check that there are images with different ids, and that at most `may_lack` image files are missing.

    Raises:
        DataError: the check fails; the message names the first wrong image and the number of missing ones.
    """
    if not entries:
        raise DataError(f"{source}: no images, expected at least one")
    seen: dict[str, Entry] = {}
    for entry in entries:
        inner_path(entry.id, f"{entry.where}: id of {entry.image.name!r:.80}")
        if (other := seen.setdefault(nfc(entry.id), entry)) is not entry:
            if entry.image == other.image:
                raise DataError(f"{entry.where}: image {entry.id!r} has two entries")
            raise DataError(
                f"{entry.where}: image {str(entry.image)!r:.200} gets the same id {entry.id!r} as "
                f"{str(other.image)!r:.200}, expected names that differ without their suffixes"
            )
    missing = [entry for entry in entries if not entry.image.is_file()]
    if len(missing) > may_lack:
        raise DataError(
            f"{missing[0].where}: no image file {str(missing[0].image)!r:.200} ({len(missing)} of "
            f"{len(entries)} are missing); name the images' folder with --images, or leave them out with "
            f"--skip-corrupt {len(missing)}"
        )
