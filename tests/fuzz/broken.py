"""Readers with every fault that the harness must see."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

from dmtl.errors import DataError
from tests.fuzz.readers import Reader, files

TRAP = pickle.dumps(print)


def refuses(path: Path) -> None:
    raise DataError(f"{path}: is bad, expected a good one")


def names_another(path: Path) -> None:
    raise DataError(f"{path.name}: is bad")


def two_lines(path: Path) -> None:
    raise DataError(f"{path}: is bad\nand worse")


def speaks_of_memory(path: Path) -> None:
    try:
        bytearray(4 << 30)
    except MemoryError as error:
        raise DataError(f"{path}: is large") from error


READERS = {
    name: Reader(files(lambda: {"a": b"seed", "b": b"other seed"}), read, valid=False)
    for name, read in {
        "reads": Path.read_bytes,
        "refuses": refuses,
        "wrong error": lambda path: {}[path],
        "wrong message": names_another,
        "two lines": two_lines,
        "crash": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
        "hang": lambda path: any(iter(int, 1)),
        "memory": lambda path: bytearray(4 << 30),
        "told memory": speaks_of_memory,
        "code": lambda path: os.system("true"),
        "unpickles": lambda path: pickle.loads(TRAP),
        "writes": lambda path: path.with_name("c").write_bytes(b""),
    }.items()
}
