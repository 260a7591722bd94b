"""Write any data set in the folder format, sample by sample. Repeating an interrupted call continues it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmtl.data.base import LabelledImages
from dmtl.data.benchmarks.base import Distribution
from dmtl.data.folder import manifest
from dmtl.data.folder.description import description_text, read_description
from dmtl.data.folder.label_maps import label_file
from dmtl.data.folder.manifest import Entry
from dmtl.data.folder.paths import inner_path, inside, plain_name, read_ids
from dmtl.data.images import IMAGE_SUFFIXES, appearance, png_bytes
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.parallel import in_parallel
from dmtl.data.shards.member import Member
from dmtl.errors import DataError
from dmtl.runtime.files import is_temporary, write_bytes, write_text

BOUNDARIES = "boundaries"
_PATIENCE_S = 10  # wait for the lock: processes of a killed writer end within 5 s


@dataclass(frozen=True)
class Exported:
    """The result of `export_folder`. It can be used as a path: that of the folder.

    Attributes:
        folder: the folder.
        images: number of images in the split.
        written: number of images that this call wrote.
        labels: task -> number of label files.
        size: bytes of all files of the split.
        unknown: task -> (number of unknown pixels, number of pixels) in the samples that this call wrote.
        skipped: a message for each sample that could not be read.
    """

    folder: Path
    images: int
    written: int
    labels: dict[str, int]
    size: int
    unknown: dict[str, tuple[int, int]]
    skipped: list[str]

    def __fspath__(self) -> str:
        return str(self.folder)


def export_folder(
    dataset: LabelledImages,
    out: str | os.PathLike,
    labels: LabelMatrix | None = None,
    *,
    skip_corrupt: int = 0,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
    verify_all: bool = False,
) -> Exported:
    """Write `dataset` to the folder `out`; `Folder(out, dataset.split)` then reads the same values.

    Image files are copied byte for byte if a folder may hold their type; others are written as PNG. Class ids
    are written as PNG and numbers as .npy. Labels of a distributed benchmark are stored as
    `Distribution.stored` returns them. `manifest.jsonl` records every file. The list of the split is written
    last.

    After an interruption or an error, the same call can be repeated: it keeps all complete samples and ends
    with the same folder, byte for byte. After a complete call it writes nothing. Other splits can be added
    later; their files are never replaced.

    Args:
        dataset: the data set to write.
        out: folder to write.
        labels: write only the labels that it shows; None: all.
        skip_corrupt: number of samples that may be left out because they cannot be read; one more is an
            error.
        workers: processes that read and write; 0: use this process.
        progress: wraps the loop over the samples that are written.
        verify_all: after an interruption, compare every finished sample with the source, because it may have
            been edited; False: compare only the first and the last one.

    Raises:
        DataError: a sample is damaged; or the folder holds something else, was begun from another source, or
            is being written by another process.
        OSError: the folder cannot be written, for example because the disk is full.
    """
    writer = SampleWriter(dataset, Path(out), labels)
    writer.root.mkdir(parents=True, exist_ok=True)
    with locked(writer.root):
        others, mine = writer.recorded()
        writer.describe()
        done = {entry.id: entry for entry in mine if entry.complete(writer.root)}
        writer.replaceable = {path for entry in mine if entry.id not in done for path in entry.files}
        writer.verify(done, verify_all)
        _remove_leftovers(writer.root)
        writer.record([*others, *done.values()])
        todo = [index for index, id in enumerate(dataset.ids) if id not in done]
        results = zip(progress(todo), in_parallel(writer, todo, workers))
        try:
            unknown, skipped = _collect(writer, results, done, skip_corrupt)
        except OSError as error:
            state = f"{len(done)} of {len(dataset)} samples are in {writer.root}; repeat the call to continue"
            raise OSError(error.errno, f"{error.strerror or error}; {state}") from None
        ordered = [done[id] for id in dataset.ids if id in done]
        if not ordered:
            raise DataError(f"{skipped[0]} (no sample of {dataset.split} can be read)")
        writer.record([*others, *ordered])
        _write_if_new(writer.listing, "".join(f"{entry.id}\n" for entry in ordered))
    files = [(path, size) for entry in ordered for path, (size, _) in entry.files.items()]
    folders = Counter(path.partition("/")[0] for path, _ in files)
    return Exported(
        folder=writer.root,
        images=len(ordered),
        written=len(todo) - len(skipped),
        labels={task: folders[task] for task in dataset.tasks},
        size=sum(size for _, size in files),
        unknown={task: (unknown[task, "unknown"], unknown[task, "all"]) for task in dataset.tasks},
        skipped=skipped,
    )


def _collect(
    writer: SampleWriter, results: Iterable[tuple[int, Any]], done: dict[str, Entry], skip_corrupt: int
) -> tuple[Counter, list[str]]:
    """Add finished samples to the manifest and to `done`, and raise errors that cannot be skipped.

    Returns:
        Number of pixels by (task, "unknown" or "all"), and a message for each skipped sample.
    """
    data = writer.dataset
    unknown: Counter[tuple[str, str]] = Counter()
    skipped: list[str] = []
    with open(writer.root / manifest.NAME, "ab", buffering=0) as record:
        for index, result in results:
            if isinstance(result, Exception):
                raise result
            entry, found = result
            if entry is None:
                skipped.append(found)
                if len(skipped) > skip_corrupt:
                    state = f"{len(done)} of {len(data)} samples of {data.split} are in {writer.root}"
                    raise DataError(
                        f"{found} (sample {data.ids[index]!r}; {state}; fix the sample or allow some to be "
                        "skipped, then repeat the call to continue)"
                    )
                continue
            done[entry.id] = entry
            unknown.update(found)
            line = entry.line().encode() + b"\n"
            if record.write(line) != len(line):
                raise OSError(errno.ENOSPC, f"cannot write {record.name}: {os.strerror(errno.ENOSPC)}")
        os.fsync(record.fileno())
    return unknown, skipped


class SampleWriter:
    """Write one split into a folder. Calling the object with an index writes the files of that sample."""

    def __init__(self, dataset: LabelledImages, root: Path, labels: LabelMatrix | None):
        self.dataset, self.root, self.labels = dataset, root, labels
        split = plain_name(dataset.split, "export_folder: name of the split")
        self.listing = root / "splits" / f"{split}.txt"
        for id in dataset.ids:
            inner_path(id, "export_folder: id")
        self.replaceable: set[str] = set()

    def __call__(
        self, index: int
    ) -> tuple[Entry, dict[tuple[str, str], int]] | tuple[None, str] | DataError | OSError:
        """Write a sample.

        Returns:
            The manifest's entry and the number of pixels by (task, "unknown" or "all"). If the sample cannot
            be read: None and a message. If the conversion must end: the error, returned so that worker
            processes pass it on unchanged.
        """
        try:
            try:
                contents, labels = self.contents(index)
            except DataError as error:
                return None, str(error)
            for path, content in contents.items():
                self._put(path, content)
        except (DataError, OSError) as error:
            return error
        files = {path: manifest.digest_of(content) for path, content in contents.items()}
        return Entry(self.dataset.ids[index], self.dataset.split, files), self.pixels(labels)

    def pixels(self, labels: dict[str, Tensor]) -> dict[tuple[str, str], int]:
        """Count the pixels of labels by (task, "unknown" or "all")."""
        found: dict[tuple[str, str], int] = {}
        for task, label in labels.items():
            valid = self.dataset.tasks[task].valid(label)
            found |= {(task, "unknown"): int((~valid).sum()), (task, "all"): valid.numel()}
        return found

    def contents(self, index: int) -> tuple[dict[str, bytes], dict[str, Tensor]]:
        """Decode a sample; return its files (path -> content) and its labels by task."""
        image, stored, labels = self._read(index)
        id, source = self.dataset.ids[index], self.dataset.image_file(index)
        if source is not None and self._can_copy(source):
            files = {f"images/{id}{source.suffix.lower()}": source.read_bytes()}
        else:
            files = {f"images/{id}.png": png_bytes(image.permute(1, 2, 0))}
        for task, values in stored.items():
            suffix, content = label_file(values)
            files[f"{task}/{id}{suffix}"] = content
        if self.has_boundaries:
            found = self.dataset.boundaries(index)
            if found is None:
                raise DataError(f"{self.dataset.name}: {id!r} has no boundaries, but other images have")
            files[f"{BOUNDARIES}/{id}.png"] = png_bytes(found.numpy().astype(np.uint8))
        return files, labels

    def _can_copy(self, source: Path | Member) -> bool:
        """Return whether a copy of an image file is read in the same way as this data set reads the
        original."""
        if source.suffix.lower() not in IMAGE_SUFFIXES:
            return False
        # Labels of a benchmark fit the pixels as stored, but a folder's images are turned by their tags.
        return not isinstance(self.dataset, Distribution) or appearance(source).orientation == 1

    def _read(self, index: int) -> tuple[Tensor, dict[str, np.ndarray], dict[str, Tensor]]:
        data = self.dataset
        tasks = self.shown(data.ids[index])
        if not isinstance(data, Distribution):
            sample = data.read(index, tasks)
            stored = {task: data.tasks[task].label_to_stored(label) for task, label in sample.labels.items()}
            return sample.image, stored, sample.labels
        image, found = data.image(index), {task: data.stored(index, task) for task in tasks}
        size = (image.shape[1], image.shape[2])
        stored = {task: values for task, values in found.items() if values is not None}
        labels = {task: data.decoded(index, task, v, size) for task, v in stored.items()}
        return image, stored, labels

    def shown(self, id: str) -> list[str]:
        """Return the tasks for which the label of an image is written."""
        shown = None if self.labels is None else set(self.labels.tasks_of(id))
        return [task for task in self.dataset.tasks if shown is None or task in shown]

    @cached_property
    def has_boundaries(self) -> bool:
        """Return whether the data set has separate boundaries, judged by the first sample that can be
        read."""
        for index in range(len(self.dataset)):
            try:
                return self.dataset.boundaries(index) is not None
            except DataError:
                continue
        return False

    def recorded(self) -> tuple[list[Entry], list[Entry]]:
        """Return the entries of the folder's manifest: those of other splits, and those of this one.

        Raises:
            DataError: the folder was begun from another data set.
        """
        entries = manifest.read_manifest(self.root)
        mine = [entry for entry in entries if entry.split == self.dataset.split]
        others = [entry for entry in entries if entry.split != self.dataset.split]
        path, ids = self.root / manifest.NAME, set(self.dataset.ids)
        if taken := next((entry for entry in others if entry.id in ids), None):
            raise DataError(
                f"{path}: {taken.id!r} exists already in {taken.split}, "
                "expected ids that differ between splits"
            )
        if foreign := next((entry for entry in mine if entry.id not in ids), None):
            raise DataError(
                f"{path}: lists {foreign.id!r} in {self.dataset.split}, which is not in {self.dataset.name}, "
                "expected the source from which the folder was begun"
            )
        if self.listing.exists() and not set(read_ids(self.listing)) <= {entry.id for entry in mine}:
            raise DataError(f"{self.listing}: exists already, expected a new split or an empty folder")
        return others, mine

    def describe(self) -> None:
        """Write dataset.yaml, or check that the existing one agrees with the data set."""
        path = self.root / "dataset.yaml"
        found = read_description(self.root) if path.exists() else None
        text = self.description(found, path)
        if text != found:
            write_text(path, description_text(text))

    def description(self, found: dict[str, Any] | None, path: Path) -> dict[str, Any]:
        """Return the content of dataset.yaml for the data set.

        Args:
            found: the content of the existing file; None if there is none. It is kept, and boundaries are
                added if the data set has them.
            path: the file, for messages.

        Raises:
            DataError: `found` does not agree with the data set.
        """
        data = self.dataset
        text = {
            "name": data.name,
            "tasks": self.options(),
            "evaluation": {k: list(v) if isinstance(v, tuple) else v for k, v in data.evaluation.items()},
            "description": f"Converted from {data.format}." if isinstance(data, Distribution) else "",
        }
        text = {key: value for key, value in text.items() if value}
        found = text if found is None else found
        if found["tasks"] != text["tasks"]:
            raise DataError(
                f"{path}: has other tasks than the data set to write, expected those of {data.name}"
            )
        for key in ("name", "evaluation", "description"):
            if found.get(key) != text.get(key):
                raise DataError(
                    f"{path}: {key} is {found.get(key)!r:.80}, expected {text.get(key)!r:.80} "
                    f"as in the data set to write here"
                )
        if self.has_boundaries:
            if BOUNDARIES in text["tasks"]:
                raise DataError(f"export_folder: a task is called {BOUNDARIES!r}, expected another name")
            found = {**found, "boundaries": BOUNDARIES}
        return found

    def options(self) -> dict[str, dict[str, Any]]:
        """Return the content of `tasks` in dataset.yaml: options by task."""
        specs = {name: task.spec() for name, task in self.dataset.tasks.items()}
        return {name: {k: v for k, v in spec.items() if k != "name"} for name, spec in specs.items()}

    def verify(self, done: dict[str, Entry], all: bool) -> None:
        """Compare the first and the last finished sample, or `all`, with the source; DataError if one
        differs."""
        indices = [index for index, id in enumerate(self.dataset.ids) if id in done]
        for index in indices if all else dict.fromkeys(indices[:1] + indices[-1:]):
            entry = done[self.dataset.ids[index]]
            contents = {path: manifest.digest_of(c) for path, c in self.contents(index)[0].items()}
            if contents != entry.files:
                raise DataError(
                    f"{self.root}: files of {entry.id!r} differ from those of {self.dataset.name}, expected "
                    "the unchanged source from which the folder was begun"
                )

    def record(self, entries: Sequence[Entry]) -> None:
        """Write a manifest with exactly these entries, split by split."""
        entries = sorted(entries, key=lambda entry: entry.split)
        _write_if_new(self.root / manifest.NAME, "".join(f"{entry.line()}\n" for entry in entries))

    def _put(self, path: str, content: bytes) -> None:
        target = inside(self.root, self.root / path)
        if not target.exists() or path in self.replaceable:
            write_bytes(target, content)
        elif target.read_bytes() != content:  # a killed writer leaves only whole files with the same content
            raise DataError(f"{target}: exists already, expected a new split or an empty folder")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    handle = os.open(root, os.O_RDONLY)
    try:
        for attempt in range(_PATIENCE_S * 10 + 1):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _PATIENCE_S * 10:
                    raise DataError(
                        f"{root}: another process is writing to this folder; wait until it has finished"
                    ) from None
                time.sleep(0.1)
        yield
        fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _remove_leftovers(root: Path) -> None:
    """Remove temporary files of a writer that was killed."""
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(".") and is_temporary(name):
                os.unlink(os.path.join(folder, name))


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)
