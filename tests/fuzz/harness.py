"""Starts the process that reads, again after each crash, and counts what came of every file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MOST_CRASHES = 20
HANGS = {signal.SIGPROF: "hang", signal.SIGALRM: "hang"}


@dataclass
class Result:
    """Of one reader: how many files had each outcome, and what happened where it was a fault."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, number: int, outcome: str, what: str = "") -> None:
        self.counts[outcome] += 1
        if outcome not in ("read", "refused"):
            self.faults.append(f"file {number}: {outcome}: {what}")


def fuzz(
    names: Iterable[str], count: int, folder: Path, first: int = 0, module: str = "tests.fuzz.readers"
) -> dict[str, Result]:
    """Files `first` to `first + count - 1` against each reader of `module`; `folder` holds them meanwhile.

    File number n of a reader is the same in every run. After MOST_CRASHES crashes of a reader the rest of its
    files is left out, which the counts show.
    """
    results = {name: Result() for name in names}
    left = {name: range(first, first + count) for name in results}
    while left := {name: numbers for name, numbers in left.items() if numbers}:
        jobs = [f"{name}:{numbers.start}:{len(numbers)}" for name, numbers in left.items()]
        for name, number, outcome, *what in (lines := _Lines([module, str(folder), *jobs])):
            results[name].add(number, outcome, *what)
            left[name] = range(number + 1, first + count)
        if lines.status < 0:
            name = next(name for name, numbers in left.items() if numbers)
            number, kind = left[name].start, signal.Signals(-lines.status)
            results[name].add(number, HANGS.get(kind, "crash"), kind.name)
            crashes = sum(results[name].counts[outcome] for outcome in ("crash", "hang"))
            left[name] = range(number + 1, first + count if crashes < MOST_CRASHES else 0)
    return results


class _Lines:
    """What a worker prints, line by line; afterwards its exit status, negative for a signal."""

    def __init__(self, arguments: list[str]):
        self.arguments, self.status = arguments, 0

    def __iter__(self) -> Iterator[list]:
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, "-m", "tests.fuzz.worker", *self.arguments]
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(
                command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process:
                yield from map(json.loads, process.stdout)
            self.status = process.returncode
            if self.status > 0:
                errors.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with status {self.status}: {errors.read()}")
