"""Training checkpoints: everything that decides what the next step computes, in numbered files with a digest.

A file is a header of 56 bytes and then what `torch.save` writes. The header, little-endian: magic `DMTLCKPT`,
format (8 bytes), length of what follows the header (8 bytes), and the SHA-256 of what follows and of the 24
bytes before the digest. Nothing is unpickled before the digest fits, and then tensors and plain containers
alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import struct
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dmtl.errors import CheckpointError
from dmtl.models.weights import load_refusal
from dmtl.runtime.files import write_atomically

MAGIC, FORMAT = b"DMTLCKPT", 1
_FRONT = struct.Struct("<8sQQ")  # magic, format, length of what follows the header
_HEADER = _FRONT.size + hashlib.sha256().digest_size
_NAME = re.compile(r"step-(\d+)\.pt")


class DamagedCheckpoint(CheckpointError):
    """A file does not hold what was written: cut short, or with other bytes. The message names it."""


class Checkpoints:
    """The checkpoints of a run, `folder/step-00000123.pt`, of which the newest `keep` stay.

    Any number of processes may read, one may write. Nothing is touched before the first `save`.
    """

    def __init__(self, folder: str | Path, keep: int):
        if keep < 1:
            raise ValueError(f"Checkpoints: keep must be at least 1, got {keep}")
        self.folder, self.keep = Path(folder), keep
        self._good: Path | None = None
        self._writer: futures.ThreadPoolExecutor | None = None
        self._pending: futures.Future | None = None

    def save(self, step: int, state: Mapping, *, wait: bool = False) -> None:
        """Copies `state` now and writes the copy in a thread; with `wait`, returns when it is on disk.

        `state` holds tensors, numbers, strings and None in dictionaries, lists and tuples; it may change as
        soon as this returns. A write that is still under way is waited for first, so that there is never more
        than one copy in memory.

        Raises:
            OSError: this write (with `wait`) or the one before it failed; names the file, the reason and the
                last good checkpoint, which is still there.
            TypeError: `state` holds something else.
        """
        self.wait()
        copy = snapshot(state)
        if self._writer is None:
            self._remove_leftovers()
            self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending = self._writer.submit(self._write, step, copy)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is left to write. Raises OSError as `save` does."""
        if self._pending is not None:
            futures.wait([self._pending])
            done, self._pending = self._pending, None
            done.result()

    def close(self) -> None:
        """`wait`, and the thread ends; the next `save` starts another."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
                self._writer = None

    def latest(self, say: Callable[[str], None]) -> dict | None:
        """The newest whole checkpoint, tensors on the CPU; None where there is no file.

        `say` is told of every damaged one that is passed over. It is renamed to `*.damaged`, so that it is
        neither tried again nor written over.

        Raises:
            CheckpointError: all of them are damaged (they keep their names), or one is whole but foreign.
        """
        files, passed_over = self._files(), []
        for step in sorted(files, reverse=True):
            try:
                state = read_checkpoint(files[step])
            except FileNotFoundError:  # another process has just renamed it
                continue
            except DamagedCheckpoint as error:
                passed_over.append((files[step], str(error)))
                continue
            for path, told in passed_over:
                say(f"{told}, {_set_aside(path)}; using step {step}")
            self._good = files[step]
            return state
        if passed_over:
            raise CheckpointError(
                f"{self.folder}: no whole checkpoint to go on from: " + "; ".join(t for _, t in passed_over)
            )
        return None

    def _files(self) -> dict[int, Path]:
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*.pt"))
        return {int(match[1]): path for match, path in found if match}

    def _remove_leftovers(self) -> None:
        """Temporary files of writes that were killed; if the folder is read-only, the write will tell."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(".step-*.pt.*"):
                path.unlink()

    def _write(self, step: int, state: dict) -> None:
        path = self.folder / f"step-{step:08d}.pt"
        try:
            write_atomically(path, lambda temporary: _write_file(temporary, state))
            for folder in (self.folder, self.folder.parent):
                _sync(folder)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror or error}; {self._last_good()}") from None
        self._good = path
        files = self._files()
        for old in sorted(number for number in files if number <= step)[: -self.keep]:
            files[old].unlink()

    def _last_good(self) -> str:
        if self._good is None:
            return "there is no checkpoint before it"
        [step] = _NAME.findall(self._good.name)
        return f"the last good checkpoint is {self._good} (step {int(step)})"


def snapshot(state: Any, name: str = "state") -> Any:
    """A copy of nested dictionaries, lists and tuples; its tensors lie in CPU memory of their own.

    Tensors of a GPU come through pinned memory, all of them with one synchronisation. Mappings become plain
    dictionaries. Raises TypeError, naming the entry, for what a checkpoint cannot hold.
    """
    devices: set[torch.device] = set()
    copy = _copied(state, name, devices)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return copy


def state_bytes(state: object) -> int:
    """Bytes of all tensors in nested dictionaries, lists and tuples."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    values = (
        state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    )
    return sum(map(state_bytes, values))


def read_checkpoint(path: str | Path) -> dict:
    """The state of one file, tensors on the CPU.

    Raises DamagedCheckpoint when a byte of it is not as it was written; CheckpointError when it is whole, but
    of another format or with more than tensors and plain containers in it.
    """
    with open(path, "rb") as file:
        try:
            form = _check(path, file)
        except OSError as error:  # a bad sector
            raise DamagedCheckpoint(f"{path}: damaged (cannot be read: {error.strerror})") from None
        if form != FORMAT:
            raise CheckpointError(f"{path}: is of format {form}, expected format {FORMAT}")
        file.seek(_HEADER)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path}: its digest fits, but torch does not load it ({load_refusal(error)})"
            ) from None


class _Digesting:
    """What torch writes to: every byte goes to the file and into the digest.

    torch must not meet an exception of the file half-way; `error` keeps it until torch is done.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.length = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self.file.write(view)
            except OSError as error:
                self.error = error
            self.digest.update(view)
        self.length += len(view)
        return len(view)

    def flush(self) -> None:
        """torch asks for it; the file is flushed when the header is written."""


def _write_file(path: str, state: dict) -> None:
    with open(path, "wb") as file:
        file.write(bytes(_HEADER))
        content = _Digesting(file)
        # torch asks for `write` and `flush` alone.
        torch.save(state, content)  # type: ignore[arg-type]
        if content.error is not None:
            raise content.error
        front = _FRONT.pack(MAGIC, FORMAT, content.length)
        content.digest.update(front)
        file.seek(0)
        file.write(front + content.digest.digest())


def _check(path: str | Path, file: BinaryIO) -> int:
    """The format of a file whose every byte is as it was written. Raises DamagedCheckpoint."""
    header, size = file.read(_HEADER), os.fstat(file.fileno()).st_size
    front, expected = header[: _FRONT.size], header[_FRONT.size :]
    if len(header) < _HEADER or not header.startswith(MAGIC):
        raise DamagedCheckpoint(f"{path}: damaged (does not begin with the header of a checkpoint)")
    _, form, length = _FRONT.unpack(front)
    if size != _HEADER + length:
        raise DamagedCheckpoint(f"{path}: damaged ({size} bytes, expected {_HEADER + length})")
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    digest.update(front)
    if digest.digest() != expected:
        raise DamagedCheckpoint(f"{path}: damaged (the SHA-256 of its content is not the one in its header)")
    return form


def _copied(value: object, name: str, devices: set[torch.device]) -> object:
    if isinstance(value, Tensor):
        value = value.detach()
        if not value.is_cuda:
            return value.to("cpu", copy=True)
        devices.add(value.device)
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise TypeError(f"save: keys of {name} must be strings or integers, got {key!r}")
        return {key: _copied(entry, f"{name}[{key!r}]", devices) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = (_copied(entry, f"{name}[{index}]", devices) for index, entry in enumerate(value))
        return tuple(entries) if isinstance(value, tuple) else list(entries)
    if value is None:
        return None
    for kind in (bool, int, float, str):  # numpy's numbers become plain ones
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(
        f"save: {name} must be a tensor, a number, a string, None or a container of them, "
        f"got {type(value).__name__}"
    )


def _set_aside(path: Path) -> str:
    """Renames a damaged file, over none that is already there; says where it is."""
    target, number = path.with_name(path.name + ".damaged"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}.damaged")
    try:
        path.rename(target)
    except FileNotFoundError:  # by another process
        return "set aside"
    except OSError:
        return "left in place"
    return f"kept as {target.name}"


def _sync(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot do it for a folder
            raise
    finally:
        os.close(handle)
