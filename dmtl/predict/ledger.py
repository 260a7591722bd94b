"""Keep track of what was predicted into a folder, by one process or by many.

Several processes and jobs may fill one folder. Each predicts one part of the inputs and keeps a record of it:

    OUT/.parts/3-of-16.open    unfinished: a line for every input whose outputs have all been written
    OUT/.parts/3-of-16.jsonl   complete
    OUT/maps.json              the index: written first without images, and again when all parts are complete

The part that finds all others complete writes the index. No locks are needed: each file is written by a
single process, atomically, and the index only depends on the parts, so two parts that finish together write
the same index. Records of an interrupted call are reused by the next one, even if it has another number of
parts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from dmtl.errors import DataError
from dmtl.predict.inputs import Failure, Input, LeftOut
from dmtl.predict.maps import read_index
from dmtl.predict.outputs import Outputs, Summary
from dmtl.predict.parts import Part, units_of
from dmtl.predict.pipeline import Waits
from dmtl.runtime.files import json_text, write_json, write_text

FOLDER = ".parts"
_PAUSE = 0.5  # seconds between two checks of other parts
_VISIBLE = 90  # seconds until all machines must see a file; network file systems cache for up to 60
_NONE = {  # what None means
    "steps": "the trained number of steps",
    "eta": "the model's eta",
    "sampler": "the model's sampler",
    "batch_size": "the default batch size",
    "tile": "automatic tiles",
    "downscale": "automatic downscaling",
    "frames": "all frames",
}
_DAMAGED = "not readable, expected a file that `dmtl predict` wrote; delete it to start again"


def fingerprint(model: nn.Module) -> str:
    """Return a digest of a model's configuration and weights."""
    digest = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class Record:
    """The record of one input.

    Attributes:
        images: entries of its images or frames in maps.json.
        video: entry of the video in maps.json; None for an image.
        failures: what failed.
    """

    images: list[dict] = field(default_factory=list)
    video: dict | None = None
    failures: list[Failure] = field(default_factory=list)

    def whole(self, item: Input) -> bool:
        """Return whether the record covers all of an input, under its current name."""
        entry = self.video if item.is_video else next(iter(self.images), None)
        return entry is not None and entry["name"] == item.name and not self.failures


@dataclass
class _Stored:
    """The content of a part's file: its first line, and records by the path of the input."""

    head: dict
    inputs: str
    done: int = 0  # images and frames predicted by the process that wrote it
    seconds: float = 0.0
    waits: dict = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)


class Ledger:
    """Keep track of one list of inputs. Call `begin`, `end` for each input, then `finish` or `interrupt`.

    Args:
        outputs: writes the outputs into the folder.
        listing: the result of `find_inputs`.
        head: everything that the maps depend on, for maps.json.
        part: the part of the inputs that this process predicts.
        batch: maximum number of images in a batch.
    """

    def __init__(
        self,
        outputs: Outputs,
        listing: tuple[Sequence[Input], list[Failure], list[LeftOut]],
        head: dict[str, Any],
        part: Part,
        batch: int,
    ):
        self.outputs, self.part, self.out_dir = outputs, part, outputs.out_dir
        self.inputs, self.failures, self.left_out = listing
        self.head = json.loads(json_text(head))
        listed = [[str(item.path), item.name] for item in self.inputs]
        self.digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        self.units = list(part.take(units_of(self.inputs, batch)))
        self.records: dict[str, Record] = {}
        self.waits = Waits()
        self._kept = 0
        self._journal: IO[str] | None = None

    def begin(self) -> list[list[Input]]:
        """Open this part and return the units that must be predicted, including those that failed before.

        Raises:
            DataError: the folder holds maps of another model or other options.
            OSError: the folder cannot be written.
        """
        index = self._read_index()
        if index is None:
            self._write_index({}, complete=False)  # first, to fail early if the folder cannot be written
        earlier = self._records_of(index) if index else {}
        for path in self._files("*-of-*.open") + self._files("*-of-*.jsonl"):
            stored = _read_part(path)
            earlier |= stored.records if stored is not None and stored.head == self.head else {}
        todo = []
        for unit in self.units:
            found = {str(item.path): earlier.get(str(item.path), Record()) for item in unit}
            if all(self._is_current(item, found[str(item.path)]) for item in unit):
                self.records |= found
            else:
                todo.append(unit)
        self._kept = _count(self.records)
        write_text(self._path(self.part.number, "open"), self._content())
        self._path(self.part.number, "jsonl").unlink(missing_ok=True)
        # First announce this part, then look: of two calls with other options that start together, one
        # notices.
        for path in self._files("*-of-*.open"):
            if (other := _read_part(path, records=False)) is not None and other.head != self.head:
                self._path(self.part.number, "open").unlink()
                self._check_head(other.head)
        path = self._path(self.part.number, "open")
        self._journal = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open until `finish`
        if index is not None:
            self.outputs.remove_torn(item for unit in todo for item in unit)
        return todo

    def check_shared(self) -> None:
        """Wait until the files of all processes that were started together are visible here, after `begin`.

        Raises:
            DataError: a process writes to another folder.
        """
        end = time.monotonic() + _VISIBLE
        while unseen := [n for n in self.part.together if not any(self._exists(n))]:
            if time.monotonic() > end:
                raise DataError(
                    f"{self.out_dir}: process {unseen[0] - self.part.first} does not see this folder; "
                    "put --out on a file system that all machines share"
                )
            time.sleep(_PAUSE)

    def record(self, path: object) -> Record:
        """Return the record of an input, to which the caller adds."""
        return self.records.setdefault(str(path), Record())

    def end(self, path: object) -> None:
        """Record that all outputs of an input have been written or have failed."""
        assert self._journal is not None
        try:
            self._journal.write(_line(str(path), self.records[str(path)]))
            self._journal.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self._journal.name}: {error.strerror}") from None

    def interrupt(self) -> None:
        """Write a record of what was predicted so far."""
        if self._journal is not None:
            self._journal.close()
        if self.part.count == 1:
            self._write_index(self.records, complete=False)
            shutil.rmtree(self.out_dir / FOLDER, ignore_errors=True)

    def finish(self, seconds: float) -> Summary:
        """Close this part. The first of the processes started together waits for the others.

        It writes the index if all parts are complete.

        Returns:
            In the first process: a summary of all parts or, while other shards are missing, of this shard. In
            other processes: a summary of this part.
        """
        assert self._journal is not None
        self._journal.close()
        write_text(self._path(self.part.number, "jsonl"), self._content(seconds))
        self._path(self.part.number, "open").unlink(missing_ok=True)
        if self.part.number != self.part.first:
            return self._summary([self._stored(seconds)])
        while set(missing := self._missing()) & set(self.part.together):
            time.sleep(_PAUSE)
        parts = None if missing else self._gather(range(self.part.count))
        if parts is not None:
            self._write_index(_joined(parts), complete=True)
            shutil.rmtree(self.out_dir / FOLDER, ignore_errors=True)
        else:
            parts = self._gather(self.part.together) or [self._stored(seconds)]
        return self._summary(parts, self.part.shards(missing))

    def _summary(self, parts: list[_Stored], missing: Sequence[int] = ()) -> Summary:
        entries, videos, failures = self._in_order(_joined(parts))
        summary = Summary(self.out_dir, failures=failures, left_out=self.left_out, missing=list(missing))
        summary.written, summary.videos = [entry["name"] for entry in entries], videos
        summary.rescaled.update(name for entry in entries for name in self.outputs.rescaled(entry))
        summary.kept = len(entries) - sum(part.done for part in parts)
        if len(parts) == len(self.part.together):  # a speed makes no sense for shards that ran at other times
            summary.seconds = max(part.seconds for part in parts)
            means = {stage: sum(part.waits[stage] for part in parts) / len(parts) for stage in parts[0].waits}
            summary.waits = Waits(**means)
        return summary

    def _missing(self) -> list[int]:
        """Return the parts that are not complete.

        A part without a file is complete if the index covers all inputs: another part has then written the
        index and removed the files.
        """
        unsure = []
        for number in range(self.part.count):
            stored = _read_part(self._path(number, "jsonl"), records=False)
            if stored is None or stored.inputs != self.digest or stored.head != self.head:
                unsure.append(number)
        if unsure and (self._read_index() or {}).get("inputs") == self.digest:
            unsure = [number for number in unsure if any(self._exists(number))]
        return unsure

    def _gather(self, numbers: Sequence[int]) -> list[_Stored] | None:
        """Return the contents of these parts' files. If some were removed, the index comes first.

        None: some files were removed, but the index does not cover them.
        """
        found = [_read_part(self._path(number, "jsonl")) for number in numbers]
        parts = [part for part in found if part is not None]
        if len(parts) < len(numbers):
            index = self._read_index() or {}
            if index.get("inputs") != self.digest:
                return None
            parts.insert(0, _Stored(self.head, self.digest, records=self._records_of(index)))
        return parts

    def _is_current(self, item: Input, record: Record) -> bool:
        """Return whether all output files of an input exist, and none is older than the input."""
        try:
            if not record.whole(item):
                return False
            times = item.path.stat()
            changed = max(times.st_mtime_ns, times.st_ctime_ns)
            files = self.outputs.files(item, record.images)
            return all(file.stat().st_mtime_ns >= changed for file in files)
        except (OSError, KeyError, TypeError, AttributeError):  # a file is missing, or the record is damaged
            return False

    def _in_order(self, records: dict[str, Record]) -> tuple[list[dict], list[dict], list[Failure]]:
        """Return the entries of images and of videos in the order of the inputs, and all failures."""
        found = [records[str(item.path)] for item in self.inputs if str(item.path) in records]
        images = [entry for record in found for entry in record.images]
        videos = [record.video for record in found if record.video is not None]
        return images, videos, [*self.failures, *(failure for record in found for failure in record.failures)]

    def _stored(self, seconds: float) -> _Stored:
        done = _count(self.records) - self._kept
        return _Stored(self.head, self.digest, done, seconds, asdict(self.waits), self.records)

    def _read_index(self) -> dict | None:
        """Return maps.json, None if there is none; raise DataError if it is of another model or other
        options."""
        index = read_index(self.out_dir)
        if index is not None:
            self._check_head(index)
        return index

    def _records_of(self, index: dict) -> dict[str, Record]:
        """Return the records from which maps.json was written."""
        records: dict[str, Record] = {}
        try:
            for entry in index["images"]:
                records.setdefault(entry["input"], Record()).images.append(entry)
            for video in index["videos"]:
                records.setdefault(video["input"], Record()).video = video
            for failure in index["failures"]:
                records.setdefault(failure["path"], Record()).failures.append(Failure(**failure))
        except (KeyError, TypeError):
            raise DataError(f"{self.out_dir / 'maps.json'}: {_DAMAGED}") from None
        return records

    def _check_head(self, head: dict) -> None:
        for key, value in self.head.items():
            if (before := head.get(key)) != value:
                was = f"{key} {before!r}" if before is not None else _NONE.get(key, f"no {key}")
                now = _NONE.get(key, "none") if value is None else repr(value)
                how = f"{was}, now {now}"
                how = {"model": "another model", "tasks": "other tasks"}.get(key, how)
                raise DataError(
                    f"{self.out_dir}: holds maps made with {how}; choose another folder, or delete this one"
                )

    def _write_index(self, records: dict[str, Record], complete: bool) -> None:
        """Write maps.json atomically.

        Its key `inputs` identifies the list of inputs that it covers completely.
        """
        images, videos, failures = self._in_order(records)
        index = {
            **self.head,
            "inputs": self.digest if complete else None,
            "images": images,
            "videos": videos,
            "failures": [asdict(failure) for failure in failures],
            "left_out": [asdict(group) for group in self.left_out],
        }
        write_json(self.out_dir / "maps.json", index, indent=1)

    def _content(self, seconds: float = 0.0) -> str:
        first = {key: value for key, value in vars(self._stored(seconds)).items() if key != "records"}
        return json_text(first) + "\n" + "".join(_line(*item) for item in self.records.items())

    def _path(self, number: int, kind: str) -> Path:
        return self.out_dir / FOLDER / f"{number + 1}-of-{self.part.count}.{kind}"

    def _exists(self, number: int) -> tuple[bool, bool]:
        return self._path(number, "open").exists(), self._path(number, "jsonl").exists()

    def _files(self, pattern: str) -> list[Path]:
        return sorted((self.out_dir / FOLDER).glob(pattern))


def _count(records: dict[str, Record]) -> int:
    return sum(len(record.images) for record in records.values())


def _line(path: str, record: Record) -> str:
    return json_text({"input": path, **asdict(record)}) + "\n"


def _joined(parts: Iterable[_Stored]) -> dict[str, Record]:
    return {path: record for part in parts for path, record in part.records.items()}


def _read_part(path: Path, records: bool = True) -> _Stored | None:
    """Read the file of a part; None if there is none. Reading stops at a partial line of a killed process."""
    try:
        with open(path, encoding="utf-8") as file:
            stored = _Stored(**json.loads(file.readline()))
            for line in file if records else ():
                if not line.endswith("\n"):
                    break
                value = json.loads(line)
                failures = [Failure(**failure) for failure in value["failures"]]
                stored.records[value["input"]] = Record(value["images"], value["video"], failures)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{path}: {_DAMAGED}") from None
    return stored
