"""Hugging Face `datasets` with columns of images: saved with `save_to_disk`, parquet files, or a Hub id.

The option `map` names the column of each task, for example {"semseg": "label", "cracks:binary": "mask"}. A
task that `dmtl.tasks` does not know needs its kind after a colon. The key "image" of `map` names the column
of the images (default: "image"). An empty cell means that the image has no label of that task. Labels may be
pictures (class ids, 0 and 1, RGB normals, or 16-bit grey times `scale`) or arrays of numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmtl.data.base import LabelledImages, Sample, unknown_name
from dmtl.data.folder.label_maps import decode_label
from dmtl.data.images import read_image, read_label_image
from dmtl.data.imports.files import package
from dmtl.data.imports.format import Context, Format, Found, Options
from dmtl.data.imports.legend import IGNORE
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import ConfigError, DataError, one_line
from dmtl.tasks import KINDS, KNOWN, Task, make_task
from dmtl.text import plural

IMAGE = "image"
_SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
}


def read_huggingface(source: Path, options: Options, context: Context) -> Found:
    """Read columns of images and labels; an id consists of the split and the number of the row."""
    columns = {name.partition(":")[0]: column for name, column in options.map.items()}
    if len(columns) < len(options.map):
        raise ConfigError(f"--map must name each task once, got {', '.join(options.map)}")
    image = columns.pop(IMAGE, IMAGE)
    if not columns:
        raise ConfigError("--map must name the column of at least one task, such as semseg=label, got none")
    tasks = {name.partition(":")[0]: _task(name, options, context) for name in options.map if name != IMAGE}
    _check_options(options, tasks)
    tables, notes = _open(source, context.scratch), []
    splits: dict[str, LabelledImages] = {}
    for split, table in tables.items():
        for column in (image, *columns.values()):
            if column not in table.column_names:
                raise DataError(f"{source}: {unknown_name('column', column, table.column_names)}")
        table = table.select_columns([image, *dict.fromkeys(columns.values())])
        rows = _Rows(str(source), split, tasks, table, image, columns, options, context.scratch)
        if not len(rows):
            raise DataError(f"{source}: split {split!r} is empty, expected rows")
        for task in tasks:
            if count := int((~rows.available().column(task)).sum()):
                notes.append(f"{plural(count, 'image')} with an empty cell: no label of {task}")
        splits[split] = rows
    return Found(splits, notes)


def _check_options(options: Options, tasks: Mapping[str, Task]) -> None:
    """Raise ConfigError for options that would have no effect."""
    for name in options.scale:
        if name not in tasks:
            raise ConfigError(f"--scale: {unknown_name('task', name, tasks)}")
        if not _is_number(tasks[name]) or not options.scale[name] > 0:
            raise ConfigError(f"--scale must be a positive number for a task of numbers, got one for {name}")
    named = [name for name, task in tasks.items() if task.label_names]
    if options.ignore and not (named and all(value.isdecimal() for value in options.ignore)):
        raise ConfigError(f"--ignore must list pixel values of class maps, got {', '.join(options.ignore)}")
    classes = [name for name in named if hasattr(tasks[name], "classes")]
    if options.classes is not None and len(classes) != 1:
        raise ConfigError(
            "--classes can only be used if --map names exactly one task of classes, "
            f"got {', '.join(classes) or 'none'}"
        )


def _is_number(task: Task) -> bool:
    return task.label_dtype.is_floating_point and task.label_channels == 1


def _task(name: str, options: Options, context: Context) -> Task:
    name, _, kind = name.partition(":")
    made = KNOWN.get(name) or KINDS.get(kind)
    if made is None or "classes" not in {f.name for f in fields(made)}:
        return make_task(name, kind or None)
    classes: Any = options.classes or context.known.get(name)
    if classes is None:
        raise ConfigError(f"--classes must name the classes of {name}, or be their number, got none")
    if len(classes) == 1 and classes[0].isdecimal():
        classes = int(classes[0])
    return make_task(name, kind or None, classes=classes)


def _open(source: Path, scratch: Path) -> dict[str, Any]:
    """Return the tables of a data set by split; the only key is "" for a table without splits."""
    datasets = package("datasets", "datasets", source)
    try:
        if not source.exists():
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
                raise DataError(
                    f"{source}: no such file or folder, expected one, or a Hub id such as org/name"
                )
            found = datasets.load_dataset(str(source))
        elif source.is_file():
            found = datasets.load_dataset("parquet", data_files=str(source), cache_dir=str(scratch / "cache"))
        elif any((source / name).exists() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(source))
        else:
            found = datasets.load_dataset(str(source), cache_dir=str(scratch / "cache"))
    except DataError:
        raise
    except Exception as error:  # of the network, of files and of any of its packages
        raise DataError(f"{source}: cannot be opened by datasets ({one_line(error)})") from error
    return dict(found) if isinstance(found, dict) else {"": found}


class _Rows(LabelledImages):
    """The rows of a table as a data set.

    A picture is written to a temporary file and read from there, because all readers of pictures read files.
    """

    def __init__(
        self,
        source: str,
        split: str,
        tasks: dict[str, Task],
        table: Any,
        image: str,
        columns: Mapping[str, str],
        options: Options,
        scratch: Path,
    ):
        super().__init__(source, split, tasks, [f"{split or 'row'}/{n:06d}" for n in range(len(table))])
        import datasets

        self.source, self.image, self.columns, self.scratch = source, image, dict(columns), scratch
        self.scale, self.ignored = dict(options.scale), [int(value) for value in options.ignore]
        # Other libraries store pictures as plain {"bytes": ..., "path": ...}.
        pictures = [
            name
            for name, kind in table.features.items()
            if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)
        ]
        for name in pictures:
            table = table.cast_column(name, datasets.Image(decode=False))
        if image not in pictures:
            raise DataError(
                f"{source}: column {image!r} holds {table.features[image]!s:.60}, expected images"
            )
        self.table = table

    def available(self) -> LabelMatrix:
        return self._available

    @cached_property
    def _available(self) -> LabelMatrix:
        names = list(dict.fromkeys(self.columns.values()))
        empty = [
            np.stack([np.asarray(batch.column(self.columns[task]).is_null()) for task in self.tasks], 1)
            for batch in self.table.select_columns(names).with_format("arrow").iter(1000)
        ]
        return LabelMatrix(self.ids, list(self.tasks), ~np.concatenate(empty))

    def image_file(self, index: int) -> Path:
        return self._file(self.table[index][self.image], self._where(index, self.image))

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        row = self.table[index]
        file, where = (
            self._file(row[self.image], self._where(index, self.image)),
            self._where(index, self.image),
        )
        with _named(file, where):
            sample = Sample(self.ids[index], read_image(file))
        for name in self.wanted(tasks):
            cell, where = row[self.columns[name]], self._where(index, self.columns[name])
            if cell is None:
                continue
            label = self._label(cell, self.tasks[name], where)
            if label.shape[-2:] != sample.size:
                raise DataError(
                    f"{where}: {label.shape[-1]}x{label.shape[-2]} pixels, expected the {sample.size[1]}x"
                    f"{sample.size[0]} of its image as viewers show it"
                )
            sample.labels[name] = label
        return sample

    def _label(self, cell: Any, task: Task, where: str) -> Tensor:
        """Return the label [K, H, W] in a cell, which holds a picture or an array of numbers."""
        if isinstance(cell, dict):
            file = self._file(cell, where)
            with _named(file, where):
                stored = read_label_image(file)
            numbers = stored.dtype.kind == "f"
        else:
            try:
                stored, numbers = np.array(cell), True
            except ValueError as error:
                raise DataError(f"{where}: {one_line(error)}, expected an array of numbers") from None
        if stored.dtype.kind not in "buif" or stored.ndim not in (2, 3):
            raise DataError(f"{where}: {stored.dtype} values of shape {list(stored.shape)}, expected [H, W]")
        if task.label_names and self.ignored:
            stored = np.where(np.isin(stored, self.ignored), IGNORE, stored).astype(stored.dtype)
        scale = self.scale.get(task.name)
        if scale is not None and stored.dtype.kind == "f":
            raise DataError(
                f"{where}: floats, but --scale {task.name}={scale:g} is only for whole numbers; remove it"
            )
        if scale is None and not numbers and _is_number(task):
            raise DataError(f"{where}: whole numbers without a unit; set --scale {task.name}=UNITS_PER_STEP")
        numbers = numbers and scale is None
        return decode_label(stored, task, where, numbers=numbers, scale=scale)

    def _where(self, index: int, column: str) -> str:
        split = f"{self.split} " if self.split else ""
        return f"{self.source}: {split}row {index}, column {column!r}"

    def _file(self, cell: Mapping[str, Any] | None, where: str) -> Path:
        """Write the picture in a cell to a temporary file, which the next call overwrites."""
        cell = cell or {}
        content = cell.get("bytes")
        if content is None and cell.get("path"):
            try:
                content = Path(cell["path"]).read_bytes()
            except OSError as error:
                raise DataError(f"{where}: {cell['path']} cannot be read ({error.strerror})") from None
        if content is None:
            raise DataError(f"{where}: empty, expected a picture")
        suffix = next((s for start, s in _SUFFIXES.items() if content.startswith(start)), ".bin")
        file = self.scratch / f"{os.getpid()}{suffix}"
        file.write_bytes(content)
        return file


@contextmanager
def _named(file: Path, where: str) -> Iterator[None]:
    """Replace the name of the temporary file in a DataError by that of the cell."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(file), where)) from None


HUGGINGFACE = Format(read_huggingface, frozenset({"map", "classes", "ignore", "scale"}))
