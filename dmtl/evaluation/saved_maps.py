"""Folders of maps to score: `MapWriter` writes them, `SavedMaps` reads those of any program.

    DIR/<task>/<id>.png or .npy    the map of image `id`, in its size; if both exist, the .npy is used;
                                   .tif and .tiff are read too: whole numbers like a PNG, others like a .npy
    DIR/maps.json                  how to read the files; needed only for scalars in PNG

| kind        | read                                                                             | written |
| ----------- | -------------------------------------------------------------------------------- | ------- |
| classes     | grey or palette PNG of 8 or 16 bits or .npy of integers [H, W]: class ids         | PNG     |
| binary      | grey PNG, probability = value / its white (255, 65535, 15, ...), a mask if no map | PNG     |
|             | of the task holds more than 0 and 1; or .npy of probabilities [H, W]              |         |
| unit_vector | .npy of floats [H, W, 3] or [3, H, W]; or RGB PNG, component = value / 127.5 - 1  | .npy    |
| scalar      | .npy of numbers [H, W]; or grey PNG, value = offset + scale * pixel, see below    | .npy    |

If maps.json describes a task, its classes and unit are used; classes are matched with those of the data set
by name. Without maps.json, class ids are those of the data set.

`scale` and `offset` of scalars in PNG are in maps.json, as `dmtl predict` writes them: under `tasks`, or in
the `reading` of each image, which is also in the PNG itself (text chunk "dmtl"). Binary tasks may have them,
too.

Maps are read back exactly as they were written, except probabilities in 8 bits. These are rounded to the
nearest code, an error of at most 1/510. Those of thin tasks are rounded down as in the published files, an
error of at most 1/255. The boundary benchmark rounds down in the same way, so its metrics stay the same.
Probabilities in float32 .npy files are exact.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.data.folder.label_maps import read_stored
from dmtl.data.folder.paths import find_files, nfc
from dmtl.data.images import write_npy
from dmtl.data.loading.batch import Batch
from dmtl.errors import ConfigError, DataError
from dmtl.predict.maps import FORMAT, encode_map, read_index
from dmtl.predict.outputs import output_folder
from dmtl.runtime.distributed import World, gather
from dmtl.runtime.files import write_bytes, write_json
from dmtl.tasks import Task
from dmtl.text import shortened

_PICTURES = (".png", ".tif", ".tiff")


class MapWriter:
    """Write the maps of batches, without padding, into a folder. Use it in a `with` statement.

    maps.json is written at the end of the `with` block, also after an error or Ctrl-C.

    Args:
        folder: a new or empty folder, or one that `MapWriter` wrote.
        tasks: the tasks whose maps will be added.
        about: content of maps.json that concerns all maps.
        floats: write probabilities as float32 .npy instead of rounding them to 8 bits.
        world: the processes that write into this folder; the first one lists the images of all. None: only
            this process.

    Raises:
        DataError: the folder holds other files, such as maps of `dmtl predict`.
        OSError: a file cannot be written; the message names it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tasks: Mapping[str, Task],
        about: Mapping[str, Any],
        *,
        floats: bool = False,
        world: World | None = None,
    ):
        self.world = World() if world is None else world
        self.folder, self.tasks, self.about = output_folder(folder), dict(tasks), dict(about)
        # Writing into a folder of `dmtl predict` would overwrite its maps.json, and so its records.
        if "inputs" in (read_index(self.folder) or {}):
            raise DataError(f"{folder}: holds maps of dmtl predict, choose another folder")
        numbers = (name for name, task in tasks.items() if task.map_dtype.is_floating_point)
        self.arrays = {name for name in numbers if floats or not tasks[name].label_names}
        self.images: list[dict] = []
        self.write_index()  # first, to fail early if the folder cannot be written; also marks it as ours

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.world.size > 1:
            self.images = [image for images in gather(self.images) for image in images]
        if kind is not None or self.world.main:
            self.write_index()

    def add(self, batch: Batch, maps: Mapping[str, Tensor]) -> None:
        """Write the maps of a batch, task -> [B, H, W] or [B, K, H, W]."""
        for row, id in enumerate(batch.ids):
            for name, map in maps.items():
                self._write(name, id, map[row][..., *batch.unpadded(row)].cpu())
            self.images.append({"name": id, "size": list(batch.valid_size[row])})

    def write_index(self) -> None:
        """Write maps.json with the images added so far."""
        tasks = {name: self._description(name) for name in self.tasks}
        index = {"format": FORMAT, **self.about, "tasks": tasks, "images": self.images}
        write_json(self.folder / "maps.json", index, indent=1)

    def _description(self, name: str) -> dict:
        task = self.tasks[name]
        if name in self.arrays:
            sides = "[H, W]" if task.label_channels == 1 else f"[H, W, {task.label_channels}]"
            return {**task.meaning(), "npy": f"float32 {sides}; {task.words.map}"}
        return task.map_format() | ({"rounding": "down, as published"} if task.thin else {})

    def _write(self, name: str, id: str, map: Tensor) -> None:
        path, stale = (self.folder / name / f"{id}{suffix}" for suffix in self._suffixes(name))
        if name in self.arrays:
            write_npy(path, map.float().movedim(0, -1) if map.ndim == 3 else map.float())
        else:
            task = self.tasks[name]
            write_bytes(path, encode_map(task, (map * 255).floor() / 255 if task.thin else map)[0])
        stale.unlink(missing_ok=True)  # a map that an earlier call wrote in the other format

    def _suffixes(self, name: str) -> tuple[str, str]:
        return (".npy", ".png") if name in self.arrays else (".png", ".npy")


class SavedMaps:
    """Read the maps in a folder, to score them instead of a model (`dmtl.evaluation.scoring.score`).

    Args:
        folder: a folder of maps, as the module describes it.
        tasks: the tasks of the maps (`saved_tasks`).
        needed: task -> ids of the images that must have a map; other images may have one.

    Raises:
        DataError: maps are missing; the message lists them. When maps are read: a file is damaged or has
            another size; the message names it.
    """

    device = torch.device("cpu")

    def __init__(
        self, folder: str | os.PathLike, tasks: Mapping[str, Task], needed: Mapping[str, Iterable[str]]
    ):
        self.folder, self.tasks = Path(folder), dict(tasks)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder, expected <task>/<id>.png or .npy in it")
        wanted = {name: list(needed[name]) for name in tasks}
        self.files = {}
        for name, ids in wanted.items():
            found = (find_files(self.folder / name, part, ids) for part in (_PICTURES, (".npy",)))
            self.files[name] = {id: self.folder / name / file for part in found for id, file in part.items()}
        missing = [f"{name}/{id}" for name, ids in wanted.items() for id in ids if id not in self.files[name]]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {sum(map(len, wanted.values()))} maps are missing: "
                f"{shortened(missing, 5)}, expected <task>/<id>.png or .npy"
            )
        self._described = _readings(self.folder)
        self._masks: dict[str, bool] = {}

    def _reading(self, name: str, id: str) -> tuple[float, float] | None:
        """Return (scale, offset) of a PNG if maps.json has it, or if all maps of the task are masks of 0 and
        1."""
        if (described := self._described(name, id)) is not None:
            return described
        of_masks = self.tasks[name].assumed_reading(1)
        if of_masks is None:
            return None
        if name not in self._masks:  # the search ends at a map that is not a mask, usually the first one
            pictures = (path for path in self.files[name].values() if path.suffix.lower() in _PICTURES)
            self._masks[name] = all(read_stored(path).values.max() <= 1 for path in pictures)
        return of_masks if self._masks[name] else None

    def maps_of(self, batch: Batch, names: Iterable[str]) -> dict[str, Tensor]:
        """Return decoded maps in the frame of the batch; 0 in the padding and for images without a map."""
        frame = tuple(batch.image.shape[-2:])
        out = {}
        for name in names:
            task = self.tasks[name]
            sides = frame if task.label_channels == 1 else (task.label_channels, *frame)
            out[name] = torch.zeros(len(batch), *sides, dtype=task.map_dtype)
            for row, id in enumerate(batch.ids):
                if id in self.files[name]:
                    reading = self._reading(name, id)
                    map = read_map(self.files[name][id], task, batch.valid_size[row], reading)
                    out[name][row][..., *batch.unpadded(row)] = map
        return out


def saved_tasks(folder: str | os.PathLike, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return the tasks of which a folder has maps, with the options in its maps.json.

    Raises:
        DataError: the folder is missing, or its maps are of another kind or unit.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder, expected one with a folder of maps for each task")
    path = Path(folder) / "maps.json"
    entries = (read_index(path.parent) or {}).get("tasks", {})
    found = {}
    for name, task in tasks.items():
        if (Path(folder) / name).is_dir():
            entry = entries.get(name, {}) if isinstance(entries, dict) else None
            if not isinstance(entry, dict):
                raise DataError(f"{path}: tasks.{name} is not an object, expected one as in `dmtl predict`'s")
            try:
                found[name] = task.described(entry)
            except ConfigError as error:
                raise DataError(f"{path}: tasks.{name}.{error}") from None
    return found


def read_map(
    path: Path, task: Task, size: tuple[int, int], reading: tuple[float, float] | None = None
) -> Tensor:
    """Read a decoded map of one image: int64 or float32 [H, W], or float32 [K, H, W], as from `task.decode`.

    Args:
        path: a PNG, TIFF or .npy file.
        task: the task of the map.
        size: (H, W) of the image.
        reading: (scale, offset) of a PNG, used if neither the file nor the kind of task defines it.

    Raises:
        DataError: the map has another size, or its values are not those of the task; the message names the
            file.
    """
    found = read_stored(path)
    stored = _fitting(path, found.values, size, task.label_channels)
    reading = found.reading or reading or task.assumed_reading(found.most)
    try:
        value = task.map_from_stored(stored, numbers=found.numbers, reading=reading)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not np.isfinite(value).all():
        raise DataError(f"{path}: some values are not finite, expected a number at every pixel")
    return torch.from_numpy(np.ascontiguousarray(value))


def _fitting(path: Path, stored: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Return values as [H, W] or [K, H, W]; raise DataError if their shape does not fit the image."""
    layouts: dict[tuple[int, ...], np.ndarray] = {size: stored} if channels == 1 else {}
    if stored.ndim == 3:
        layouts |= {(*size, channels): np.moveaxis(stored, 2, 0), (channels, *size): stored}
    if stored.shape not in layouts:
        expected = [*size, *([channels] if channels > 1 else [])]
        raise DataError(f"{path}: values of shape {list(stored.shape)}, expected {expected} like the image")
    fitting = layouts[stored.shape]
    return fitting[0] if channels == 1 and fitting.ndim == 3 else fitting


def _readings(folder: Path) -> Callable[[str, str], tuple[float, float] | None]:
    """Return a function (task, id) -> (scale, offset) of a PNG from maps.json, or None if it does not say."""
    path, index = folder / "maps.json", read_index(folder) or {}
    try:
        tasks = dict(index.get("tasks", {}))
        images = {nfc(image["name"]): image.get("reading", {}) for image in index.get("images", [])}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: not readable, expected what `dmtl predict` writes") from None

    def reading(task: str, id: str) -> tuple[float, float] | None:
        try:
            found = images.get(nfc(id), {}).get(task) or tasks.get(task, {})
            return (float(found["scale"]), float(found.get("offset", 0))) if "scale" in found else None
        except (TypeError, ValueError, AttributeError):
            raise DataError(f"{path}: scale and offset of {task}/{id} must be numbers") from None

    return reading
