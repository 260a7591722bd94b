"""Training checkpoints: everything the next step depends on, in numbered files with a digest.

A file is the output of `torch.save` followed by its SHA-256. Nothing is unpickled unless the digest matches,
and then only tensors and plain containers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dmtl.errors import CheckpointError
from dmtl.models.weights import load_refusal
from dmtl.runtime.files import write_atomically

_NAME = re.compile(r"step-(\d+)\.pt")


class DamagedCheckpoint(CheckpointError):
    """A checkpoint file is truncated, or its bytes differ from those written. The message names it."""


class Checkpoints:
    """The checkpoints of a run, `folder/step-00000123.pt`, of which the newest `keep` are kept.

    Any number of processes may read, but only one may write. No file is created or changed before the first
    `save`.
    """

    def __init__(self, folder: str | Path, keep: int):
        self.folder, self.keep = Path(folder), keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None

    def save(self, step: int, state: Mapping, *, wait: bool = False) -> None:
        """Copy `state` now and write the copy in a thread; with `wait`, return when it is on disk.

        `state` holds tensors, numbers, strings and None in dictionaries, lists and tuples; it may be changed
        as soon as this returns. If the previous write is still in progress, this waits for it first, so that
        at most one copy is in memory.

        Raises:
            OSError: this write (with `wait`) or the previous one failed; the message names the file, the
                reason and the last good checkpoint, which still exists.
            TypeError: `state` holds something else.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, step, snapshot(state))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written; raise OSError if a write failed, as `save` does."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def latest(self, say: Callable[[str], object]) -> dict | None:
        """Return the newest intact checkpoint with tensors on the CPU; None if there is no file.

        Corrupt checkpoints are reported by `say` and renamed to `*.damaged`, so that they are not tried
        again.

        Raises:
            CheckpointError: all checkpoints are corrupt (they then keep their names), or one is intact but
                cannot be loaded.
        """
        files, damaged = self._files(), {}
        for step in sorted(files, reverse=True):
            try:
                state = read_checkpoint(files[step])
            except FileNotFoundError:  # another process has just renamed it
                continue
            except DamagedCheckpoint as error:
                damaged[files[step]] = str(error)
                continue
            for path, reason in damaged.items():
                say(f"{reason}, {_set_aside(path)}; using step {step}")
            return state
        if damaged:
            raise CheckpointError(
                f"{self.folder}: no intact checkpoint to resume from: " + "; ".join(damaged.values())
            )
        return None

    def _files(self) -> dict[int, Path]:
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*.pt"))
        return {int(match[1]): path for match, path in found if match}

    def _write(self, step: int, state: dict) -> None:
        path = self.folder / f"step-{step:08d}.pt"
        try:
            for leftover in self.folder.glob(".step-*.pt.*"):  # of writes that were killed
                leftover.unlink()
            write_atomically(path, lambda temporary: _write_file(temporary, state))
            _sync(self.folder)  # the new name is on disk before an old file is deleted
        except OSError as error:
            files = self._files()
            good = f"the last good checkpoint is {files[max(files)]}" if files else "no earlier one exists"
            raise OSError(error.errno, f"{error.strerror or error}; {good}") from None
        files = self._files()
        for old in sorted(number for number in files if number <= step)[: -self.keep]:
            files[old].unlink()


def _sync(folder: Path) -> None:
    """Write the directory entries of a folder to disk, so that they survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not support it for folders
            raise
    finally:
        os.close(handle)


def snapshot(state: Any) -> Any:
    """Return a copy of nested dictionaries, lists and tuples, with tensors in separate CPU memory.

    Tensors of a GPU are copied through pinned memory, with one synchronisation for all. NumPy numbers become
    plain ones.

    Raises:
        TypeError: `state` holds something that a checkpoint cannot hold.
    """
    devices: set[torch.device] = set()

    def copied(value: object) -> object:
        if isinstance(value, Tensor):
            value = value.detach()
            if not value.is_cuda:
                return value.to("cpu", copy=True)
            devices.add(value.device)
            return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        if value is None:
            return None
        raise TypeError(
            "save: state must consist of tensors, numbers, strings, None and containers of them, "
            f"got {type(value).__name__}"
        )

    copy = tree_map(copied, state)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return copy


def state_bytes(state: object) -> int:
    """Return the bytes of all tensors in nested dictionaries, lists and tuples."""
    return sum(x.nbytes for x in tree_leaves(state) if isinstance(x, Tensor))


def read_checkpoint(path: str | Path) -> dict:
    """Return the state in one file, with tensors on the CPU.

    Raises:
        DamagedCheckpoint: the bytes of the file differ from those written.
        CheckpointError: the file is intact, but holds other objects than tensors and plain containers.
    """
    with open(path, "rb") as file:
        try:
            whole = _is_whole(file)
        except OSError as error:  # a bad sector
            raise DamagedCheckpoint(f"{path}: damaged (cannot be read: {error.strerror})") from None
        if not whole:
            raise DamagedCheckpoint(f"{path}: damaged (its content does not match its SHA-256)")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path}: its SHA-256 matches, but torch cannot load it ({load_refusal(error)})"
            ) from None


class _Digesting:
    """A file for torch to write to, which also adds every byte to the digest.

    If `write` raised an exception, torch would keep the file open and its space in use. So `error` stores the
    exception instead.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        if self.error is None:
            try:
                self.file.write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def flush(self) -> None:
        """Do nothing; torch needs this method."""


def _write_file(path: str, state: dict) -> None:
    with open(path, "wb") as file:
        content = _Digesting(file)
        torch.save(state, content)  # type: ignore[arg-type]  # it only needs `write` and `flush`
        if content.error is not None:
            raise content.error
        file.write(content.digest.digest())


def _is_whole(file: BinaryIO) -> bool:
    """Return whether a file ends with the SHA-256 of the bytes before it."""
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - digest.digest_size
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    return file.read() == digest.digest()


def _set_aside(path: Path) -> str:
    """Rename a corrupt file, unless another process has done so; return a text that says where it is."""
    target = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):
        path.replace(target)
    return "left in place" if path.exists() else f"kept as {target.name}"
