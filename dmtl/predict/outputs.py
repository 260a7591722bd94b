"""Write predictions into a folder: the files of an image or a frame, and a summary.

`<name>` is the input's name (`find_inputs`): its file name without suffix, or its path below the folder in
which it was found. For a frame of a video it is the video's name, "/" and the frame's number in six digits.

    OUT/<task>/<name>.png              the map in its natural format (see `dmtl.predict.maps`)
    OUT/<task>/<name>.npy              unit vectors as float16 [3, H, W], with npy=True
    OUT/uncertainty/<task>/<name>.png  how much the noise samples differ, 16-bit grey, with samples > 1
    OUT/pictures/<task>/<name>.png     the map in colours
    OUT/overview/<name>.png            the image and all its pictures with legends on one sheet
    OUT/pictures/<task>/<video>.mp4    the pictures of a whole video, each frame at its time
    OUT/overview/<video>.mp4
    OUT/maps.json                      how to read the maps, the model and options that made them, the
                                       predicted images (frames with their `time` in seconds after the first),
                                       the failures, and what was left out
    OUT/.parts                         only during a prediction (see `dmtl.predict.ledger`)

Maps have the size of the image as viewers and players show it: the EXIF orientation, or the mirroring and
rotation of a video, are applied.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmtl.data.images import npy_bytes, png_bytes
from dmtl.errors import DataError
from dmtl.predict.inputs import Failure, Input, LeftOut
from dmtl.predict.maps import (
    encode_map,
    encode_scalar,
    holds_maps,
)
from dmtl.predict.pipeline import Waits
from dmtl.predict.video import VideoWriter
from dmtl.runtime.files import is_temporary, original_stem, write_bytes
from dmtl.tasks import Task
from dmtl.tasks.palette import heat
from dmtl.tasks.sheet import sheet
from dmtl.text import plural

RESERVED = ("pictures", "overview", "uncertainty")


@dataclass(frozen=True)
class Frame:
    """An image to predict: a file, or one frame of a video.

    Attributes:
        item: the input file.
        image: uint8 [3, H, W], RGB.
        number: number of the frame in its video, from 0; None for an image file.
        rate: number of frames to predict per second of the video.
        expected: estimated number of frames to predict.
        time: time of the frame in seconds after the first one.
        time_base: unit of the video's times in seconds.
    """

    item: Input
    image: Tensor
    number: int | None = None
    rate: Fraction | None = None
    expected: int = 1
    time: Fraction | None = None
    time_base: Fraction | None = None

    @property
    def name(self) -> str:
        """Return the name of the outputs."""
        return self.item.name if self.number is None else f"{self.item.name}/{self.number:06}"

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True)
class ImageMaps:
    """The predictions for one image, on the CPU.

    Attributes:
        maps: task -> [H, W], or [K, H, W] for vectors.
        finite: task -> bool scalar: whether the model's output is finite.
        uncertainty: task -> float32 [H, W]; empty for a single noise sample.
        steps: number of denoising steps; None if it was not counted.
    """

    maps: dict[str, Tensor]
    finite: Mapping[str, Tensor | bool]
    uncertainty: dict[str, Tensor]
    steps: int | None

    def check(self) -> None:
        """Raise DataError if the model's output is not finite."""
        for name, finite in self.finite.items():
            if not finite:
                raise DataError(f"{name}: the model's output is not finite")


@dataclass
class Summary:
    """The result of `predict_files`, including predictions that already existed.

    `ok` is False if any input failed; the command line then exits with a non-zero status. `waits` says for
    how many of the `seconds` nothing was computed, because no image had been read yet or because maps were
    still being written.
    """

    out_dir: Path
    written: list[str] = field(default_factory=list)  # names of the images and frames predicted
    kept: int = 0  # number of these that existed before
    missing: list[int] = field(default_factory=list)  # shards that are not complete yet
    failures: list[Failure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)  # what was found in folders but not predicted
    rescaled: Counter[str] = field(default_factory=Counter)  # task -> number of maps with an unusual scale
    videos: list[dict] = field(default_factory=list)  # input, name, frames, frames_per_second
    seconds: float = 0.0
    waits: Waits = field(default_factory=Waits)

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        frames = sum(video["frames"] for video in self.videos)
        counts = (
            [plural(len(self.written) - frames, "image")] if len(self.written) > frames or not frames else []
        )
        if frames:
            counts.append(f"{plural(frames, 'frame')} of {plural(len(self.videos), 'video')}")
        lines = [f"{' and '.join(counts)} predicted into {self.out_dir}"]
        if self.kept:
            lines[0] += f", {self.kept:,} of them earlier"
        if len(self.written) > self.kept and self.seconds > 0:
            unit = "frames" if len(counts) == 1 and frames else "images"
            lines[0] += f" ({(len(self.written) - self.kept) / self.seconds:.2f} {unit}/s)"
            reading, writing = (100 * w / self.seconds for w in (self.waits.reading, self.waits.writing))
            shares = (reading, 100 - reading - writing, writing)
            lines.append(
                "time: {:.0f} % waiting for images to be read, {:.0f} % computing, "
                "{:.0f} % waiting for maps to be written".format(*shares)
            )
        lines += [
            f"{task}: {plural(count, 'map')} did not fit into the usual scale; see `reading` in maps.json"
            for task, count in self.rescaled.items()
        ]
        if self.left_out:
            lines.append(f"{sum(group.count for group in self.left_out):,} left out:")
            lines += [f"  {group}" for group in self.left_out]
        if self.failures:
            lines.append(f"{len(self.failures)} failed:")
            lines += [f"  {f.path}: {f.reason}" for f in self.failures]
        if self.missing:
            numbers = ", ".join(map(str, self.missing))
            lines.append(
                f"maps.json is written when all shards have predicted the same inputs; missing: {numbers}"
            )
        return "\n".join(lines)


class Outputs:
    """Write maps and pictures below `out_dir`.

    Several threads may call `write`. Only one thread may call the methods for videos, with frames in order.
    """

    def __init__(self, out_dir: Path, tasks: dict[str, Task], *, pictures: bool, npy: bool):
        self.out_dir, self.tasks, self.pictures, self.npy = out_dir, tasks, pictures, npy
        self._videos: dict[Input, VideoWriter] = {}
        self._scaled = {name for name, task in tasks.items() if "scale" in task.map_format()}

    def rescaled(self, entry: dict) -> set[str]:
        """Return the tasks whose map in this entry of maps.json has another scale than the usual one."""
        return self._scaled & entry.get("reading", {}).keys()

    def write(self, frame: Frame, maps: ImageMaps) -> tuple[dict, dict[str, np.ndarray]]:
        """Write the outputs of one image or frame.

        Returns:
            Its entry in maps.json and, for a frame of a video, the pictures for `add_to_video`.

        Raises:
            DataError: maps are not finite.
            OSError: a file cannot be written; the message names it.
        """
        maps.check()
        entry: dict[str, Any] = {"input": str(frame.item.path), "name": frame.name, "size": list(frame.size)}
        if frame.number is not None:
            entry["frame"] = frame.number
        if frame.time is not None:
            entry["time"] = round(float(frame.time), 6)
        if maps.steps is not None:
            entry["steps"] = maps.steps
        for name, task in self.tasks.items():
            png, reading = encode_map(task, maps.maps[name])
            write_bytes(self.out_dir / name / f"{frame.name}.png", png)
            if reading:
                entry.setdefault("reading", {})[name] = reading
            if self.npy and task.label_channels > 1:
                write_bytes(self.out_dir / name / f"{frame.name}.npy", npy_bytes(maps.maps[name].half()))
        for name, values in maps.uncertainty.items():
            png, reading = encode_scalar(values.numpy())
            write_bytes(self.out_dir / "uncertainty" / name / f"{frame.name}.png", png)
            entry.setdefault("uncertainty", {})[name] = reading
        pictures = self._painted(frame, maps) if self.pictures else {}
        if frame.number is None:
            for name, picture in pictures.items():
                # Level 1 takes 2/3 of the time of level 4, and files are 1/6 larger.
                write_bytes(self._picture_path(name, f"{frame.name}.png"), png_bytes(picture, level=1))
        return entry, pictures

    def add_to_video(self, frame: Frame, pictures: dict[str, np.ndarray]) -> None:
        """Append the pictures of a frame to the files of its video."""
        if pictures:
            if frame.item not in self._videos:
                paths = {name: self._picture_path(name, f"{frame.item.name}.mp4") for name in pictures}
                assert frame.rate is not None  # every frame of a video has it
                self._videos[frame.item] = VideoWriter(paths, frame.rate, frame.time_base)
            self._videos[frame.item].add(pictures, frame.time)

    def end_video(self, item: Input) -> None:
        """Finish the files of a video."""
        if item in self._videos:
            self._videos.pop(item).close()

    def end_videos(self) -> None:
        """Finish all open video files, as far as possible, when a run is stopped."""
        while self._videos:
            _, writer = self._videos.popitem()
            try:
                writer.close()
            except OSError:  # the error that stopped the run is the one to report
                continue

    def files(self, item: Input, entries: Iterable[dict]) -> Iterator[Path]:
        """Yield all output files of an input, according to its entries in maps.json."""
        for entry in entries:
            name = entry["name"]
            for task_name, task in self.tasks.items():
                yield self.out_dir / task_name / f"{name}.png"
                if self.npy and task.label_channels > 1:
                    yield self.out_dir / task_name / f"{name}.npy"
            for task_name in entry.get("uncertainty", ()):
                yield self.out_dir / "uncertainty" / task_name / f"{name}.png"
        if self.pictures:
            suffix = ".mp4" if item.is_video else ".png"
            for name in (*self.tasks, "overview"):
                yield self._picture_path(name, f"{item.name}{suffix}")

    def remove_torn(self, items: Iterable[Input]) -> None:
        """Remove temporary files that a killed process left among the outputs of these inputs."""
        names: dict[Path, set[str]] = {}  # folder -> names of outputs without suffix
        videos: set[Path] = set()  # folders of frames
        for item in items:
            for place in ("", "uncertainty", "pictures", "overview"):
                for task in ("",) if place == "overview" else self.tasks:
                    path = self.out_dir / place / task / item.name
                    names.setdefault(path.parent, set()).add(path.name)
                    if item.is_video:
                        videos.add(path)
        for folder in {*names, *videos}:
            for file in folder.iterdir() if folder.is_dir() else ():
                if is_temporary(file.name) and (
                    folder in videos or original_stem(file.name) in names.get(folder, ())
                ):
                    file.unlink(missing_ok=True)

    def _painted(self, frame: Frame, maps: ImageMaps) -> dict[str, np.ndarray]:
        """Draw the pictures of an image: task -> uint8 [H, W, 3], and "overview"."""
        pictures = {name: np.asarray(task.picture(maps.maps[name])) for name, task in self.tasks.items()}
        shown = [("image", frame.image.permute(1, 2, 0).numpy())]
        for name, picture in pictures.items():
            shown.append((name, picture))
            if name in maps.uncertainty:
                unsure, _ = heat(maps.uncertainty[name].numpy())
                shown.append((f"{name}: uncertainty", unsure))
        legends = {name: task.picture_legend(maps.maps[name]) for name, task in self.tasks.items()}
        return {**pictures, "overview": sheet(shown, legends=legends)}

    def _picture_path(self, name: str, file: str) -> Path:
        return self.out_dir / ("overview" if name == "overview" else f"pictures/{name}") / file


def output_folder(out_dir: str | os.PathLike) -> Path:
    """Return the output folder; raise DataError if it holds other files, such as the labels of a data set."""
    path = Path(out_dir)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a file, expected a folder for the maps")
    # Temporary files are allowed: they may be the first files of another process, or of a killed one.
    if path.is_dir() and not all(is_temporary(file.name) for file in path.iterdir()) and not holds_maps(path):
        raise DataError(
            f"{path}: holds other files, expected a new or empty folder, or one that `dmtl predict` wrote"
        )
    return path
