"""Read variables of MATLAB v5 files. scipy parses them in a child process with limits on memory and time.

scipy's reader is not hardened: damaged files crash it (segmentation fault, bus error) or make it allocate
without bound. Therefore it never runs in this process. Each process that reads MATLAB files has one child
(`_mat_child.py`) for all of them. The child is killed if it hangs and replaced if it crashed. Unpickling its
answers cannot load any class. A forked process, such as a loader's worker, starts its own child. A child ends
with its parent.

A `ProcessPoolExecutor` does not work here: torch's loader workers are daemons and may not start one, it
imports the user's script again, and it cannot kill a process that hangs.
"""

from __future__ import annotations

import atexit
import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dmtl.data.images import MAX_PIXELS
from dmtl.errors import DataError, one_line

MAX_FILE_BYTES = 64 << 20
MAX_MEMORY = 1 << 30  # address space of the child; Python with scipy takes 170 MiB of it
SECONDS = 10
"""Wall-clock seconds for a file, CPU seconds for its parser."""
_START_SECONDS = 60  # importing scipy takes 0.2 s, much longer from a cold disk
_CHILD = Path(__file__).with_name("_mat_child.py")


def read_mat(path: str | os.PathLike, names: Iterable[str]) -> dict[str, Any]:
    """Read the variables `names` of a MATLAB v5 file (`save -v6` or `-v7`).

    Returns:
        The value of each variable. Numbers are an array in the shape and dtype of the file, little-endian and
        with at least 2 dimensions; logicals become uint8. Text is a str, its rows joined by newlines. A cell
        array is a list, a struct array is a list of {field: value}, both in column-major order.

    Raises:
        DataError: not a v5 file, a missing variable, damage, or a limit on memory or time exceeded; the
            message names the file. If scipy is missing, it names the extra to install.
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
    """The reason why a file cannot be read. `read_mat` adds the file's name."""


def _content(path: str | os.PathLike) -> bytes:
    """Return the file's bytes; raise `_Refused` unless they begin like a v5 file and are not too many."""
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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in an answer")


def _parse(content: bytes, names: list[str]) -> dict[str, Any]:
    global _child
    with _lock:
        child, _child = _child, None
        if child is None or child.poll() is not None:
            child = _start()
        found = _ask(child, (names, content), SECONDS)
        _child = child
    if isinstance(found, str):
        raise _Refused(f"cannot be parsed ({one_line(found)})")
    try:
        return {name: _value(found[name]) for name in names}
    except (LookupError, TypeError, ValueError):
        raise _Refused("its parser gave no sensible answer") from None


def _start() -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-P", str(_CHILD), *map(str, (MAX_MEMORY, SECONDS, MAX_PIXELS))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C goes to the parent; the child ends with it
    )
    if reason := _ask(child, None, _START_SECONDS):
        _end(child)
        raise _Refused(reason)
    return child


def _ask(child: subprocess.Popen, request: tuple | None, seconds: float) -> Any:
    """Send a request (None: send nothing) and return the child's next answer.

    If there is no answer in time, or the child crashes, end the child and raise `_Refused`.
    """
    assert child.stdin is not None and child.stdout is not None  # both are pipes
    killer = threading.Timer(seconds, child.kill)
    killer.start()
    deadline = time.monotonic() + seconds
    try:
        if request is not None:
            pickle.dump(request, child.stdin, protocol=5)
            child.stdin.flush()
        return _Unpickler(child.stdout).load()
    except BaseException as error:
        status = _end(child)
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        if time.monotonic() >= deadline:
            raise _Refused(f"not parsed within {seconds:g} s") from None
        if status == errno.ENOMEM:
            raise _Refused(f"needs more than {MAX_MEMORY >> 20} MiB to read") from None
        reason = signal.strsignal(-status) if status < 0 else f"exit status {status}"
        raise _Refused(f"its parser crashed ({reason})") from None
    finally:
        killer.cancel()


def _end(child: subprocess.Popen) -> int:
    child.kill()
    child.communicate()
    return child.returncode


def _value(plain: Any) -> Any:
    """Return a value of an answer with every (dtype, shape, bytes) replaced by its array."""
    if isinstance(plain, list):
        return [_value(element) for element in plain]
    if isinstance(plain, dict):
        return {field: _value(element) for field, element in plain.items()}
    if isinstance(plain, tuple):
        dtype, shape, numbers = plain
        return np.frombuffer(numbers, dtype).reshape(shape)
    return plain


_child: subprocess.Popen | None = None
_lock = threading.Lock()


def _close() -> None:
    """End this process's child."""
    global _child
    if _child is not None:
        _end(_child)
        _child = None


def _forget() -> None:
    """Drop the parent's child and lock in a forked process."""
    global _child, _lock
    _lock = threading.Lock()
    if _child is not None:
        # The raw file: closing the buffered one would flush what the parent has not sent yet.
        _child.stdin.raw.close()  # type: ignore[union-attr]  # a pipe, and so buffered
        _child.returncode = 0  # not ours to wait for
        _child = None


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
