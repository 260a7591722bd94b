"""Variables of MATLAB v5 files, parsed by scipy in a child process with limits.

scipy's reader is not hardened: damaged files crash it (segmentation fault, bus error) or make it allocate
without bound. So it never runs in this process. One child (`_mat_child.py`) per process serves all its
files; it is killed when it hangs, and a new one starts after a crash. The child gets the bytes of the file
and answers in JSON and raw numbers, which are checked here: nothing is unpickled. A forked process (a
loader's worker) starts its own child, and a child ends with its parent.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dmtl.data.benchmarks._mat_child import LENGTHS
from dmtl.data.folder.images import MAX_PIXELS
from dmtl.errors import DataError, one_line

MAX_FILE_BYTES = 64 << 20
SECONDS = 10
"""Of the clock for a file, of computing for its parser."""
LIMITS = {
    "memory": 1 << 30,  # address space of the child; Python with scipy takes 170 MiB of it
    "seconds": SECONDS,
    "numbers": MAX_PIXELS,  # elements of one array
    "bytes": 256 << 20,  # of all arrays: a crowd of PASCAL people with all their parts takes 100 MB
    "values": 200_000,  # arrays, strings, cells, fields and letters
    "depth": 16,
}
_START_SECONDS = 60  # importing scipy takes 0.2 s, from a cold disk much longer
_DTYPES = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8")
_CHILD = Path(__file__).with_name("_mat_child.py")


def read_mat(path: str | os.PathLike, names: Iterable[str]) -> dict[str, Any]:
    """The variables `names` of a MATLAB v5 file (`save -v6` or `-v7`).

    Returns: for numbers and logicals an array in the shape and dtype of the file (at least 2 dimensions;
    logicals uint8, little-endian); for text a str, rows joined by newlines; for a cell the list of its
    elements and for a struct array a list of {field: value}, both column by column, also where there is one.

    Errors: DataError that names the file, whatever is wrong with it: not a v5 file, a variable missing,
    damage, more memory, time or data than `LIMITS` allows; where scipy is not installed it names the extra.
    """
    names = list(names)
    expected = f"a MATLAB v5 file with {' and '.join(names)}"
    try:
        return _parse(_content(path), names)
    except _Refused as error:
        raise DataError(f"{path}: {error}, expected {expected}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}), expected {expected}") from error


class _Refused(Exception):
    """Why a file has no answer; without the file's name."""


def _content(path: str | os.PathLike) -> bytes:
    """The file's bytes, if they begin as those of a v5 file do."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise _Refused("not a file")
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise _Refused(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    if content.startswith(b"MATLAB 7.3 MAT-file") or content.startswith(b"\x89HDF"):
        raise _Refused("a v7.3 file (HDF5)")
    if not content.startswith(b"MATLAB 5.0 MAT-file"):
        raise _Refused("not a MATLAB file of version 5 to 7")
    return content


class _Child:
    """The process, and this side of the socket to it."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD), json.dumps(LIMITS)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent, whose end ends the child
            )

    def ask(self, message: bytes, seconds: float) -> tuple[dict, bytearray]:
        """Sends a message ("" for none) and waits for the reply: its text, and its bytes."""
        deadline = time.monotonic() + seconds
        self.channel.settimeout(seconds)
        self.channel.sendall(message)
        lengths = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        if lengths[0] > 64 * LIMITS["values"] or lengths[1] > LIMITS["bytes"]:
            raise ValueError("a reply of impossible length")
        reply = json.loads(self._read(lengths[0], deadline))
        if not isinstance(reply, dict):
            raise ValueError("a reply that is no mapping")
        return reply, self._read(lengths[1], deadline)

    def _read(self, length: int, deadline: float) -> bytearray:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            self.channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            count = self.channel.recv_into(rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def end(self, seconds: float = 0) -> int:
        """Kills the process unless it ends by itself in so many seconds; its exit status."""
        self.channel.close()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


_child: _Child | None = None
_lock = threading.Lock()


def _parse(content: bytes, names: list[str]) -> dict[str, Any]:
    """Asks the child, which does not survive anything but a sensible answer."""
    global _child
    text = json.dumps(names).encode()
    message = b"".join((LENGTHS.pack(len(text), len(content)), text, content))
    with _lock:
        if _child is not None and _child.process.poll() is not None:  # it died between two files
            _close()
        child, _child = _child or _start(), None
        try:
            reply, raw = child.ask(message, SECONDS)
            values = _unpack(reply["values"], names, raw) if "values" in reply else None
            if "fatal" not in reply:
                _child = child
        except TimeoutError:
            raise _Refused(f"not parsed within {SECONDS} s") from None
        except (EOFError, ConnectionError):
            raise _Refused(f"its parser crashed ({_status(child.end(5))})") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Refused("its parser gave no sensible answer") from None
        finally:
            if _child is None:
                child.end()
    if values is None:
        raise _Refused(f"cannot be parsed ({one_line(reply.get('error', reply.get('fatal')))})")
    return values


def _start() -> _Child:
    child = _Child()
    try:
        greeting, _ = child.ask(b"", _START_SECONDS)
        if greeting == {"ready": True}:
            return child
        reason = f"scipy cannot be imported ({greeting['fatal']}): pip install 'dmtl[pascal]'"
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        reason = f"the process that parses it does not start ({error or type(error).__name__})"
    child.end()
    raise _Refused(reason)


def _status(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
    except ValueError:
        return f"signal {-status}"


def _unpack(trees: dict[str, Any], names: list[str], raw: bytearray) -> dict[str, Any]:
    """The values of a reply; ValueError or TypeError where it is not what `_mat_child` says."""
    place = 0

    def value(tree: Any) -> Any:
        nonlocal place
        if isinstance(tree, str):
            return tree
        if isinstance(tree, list):
            return [value(element) for element in tree]
        if not isinstance(tree, dict) or len(tree) != 1:
            raise ValueError
        if "struct" in tree:
            return {name: value(field) for name, field in tree["struct"].items()}
        dtype, shape = tree["array"]
        if dtype not in _DTYPES or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError
        count = math.prod(shape)
        array = np.frombuffer(raw, dtype, count, place) if count else np.empty(0, dtype)
        place += array.nbytes
        return array.reshape(shape)

    values = {name: value(trees[name]) for name in names}
    if place != len(raw):
        raise ValueError
    return values


def _close() -> None:
    """Ends this process's child."""
    global _child
    if _child is not None:
        child, _child = _child, None
        child.end()


def _forget() -> None:
    """In a forked process: the child, and whoever held the lock, are the parent's."""
    global _child, _lock
    _lock = threading.Lock()
    if _child is not None:
        _child.channel.close()
        _child.process.returncode = 0  # not ours to wait for
        _child = None


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
