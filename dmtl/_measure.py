"""The fastest of several ways to compute the same thing, found by timing each once for every kind of call."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Hashable

import torch

ROUNDS = 5


class Fastest:
    """Remembers the winner of each kind of call for the life of the process.

    timer(call, device) -> seconds of one call, warmed up.
    """

    def __init__(self, timer: Callable[[Callable[[], object], torch.device], float] | None = None) -> None:
        self._timer = timer or seconds
        self.winners: dict[Hashable, str] = {}

    def choose(self, kind: Hashable, ways: dict[str, Callable[[], object]], device: torch.device) -> str:
        """Name of the fastest of `ways`, which are called to find out.

        Nothing is measured, and the first name is the answer, where there is nothing to compare, while a CUDA
        graph is captured, and under torch.use_deterministic_algorithms (two processes may measure
        differently, and two ways may round differently).
        """
        first = next(iter(ways))
        if len(ways) == 1 or torch.are_deterministic_algorithms_enabled():
            return first
        if kind not in self.winners:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return first
            times = {name: self._timer(call, device) for name, call in ways.items()}
            self.winners[kind] = min(times, key=times.get)
        return self.winners[kind]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of one call after a warm-up (which also compiles);
    on a GPU between events of its stream."""
    call()
    if device.type != "cuda":
        return statistics.median(_clocked(call) for _ in range(ROUNDS))
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        marks[-1].synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks))


def _clocked(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
