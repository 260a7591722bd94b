"""The number of threads of CPU kernels: fewer while other processes want the cores.

A parallel kernel ends with its last thread. If that thread waits for a core, the others wait for it, and a
kernel of a tenth of a millisecond takes as long as a time slice of the system. With a busy process on one of
two cores, predictions take up to four times as long with two threads, and less than twice as long with one.
The results of kernels do not depend on the number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

INTERVAL = 0.1  # seconds between two measurements
HOLD = 1.0, 30.0  # seconds until one more thread is tried: at first, and at most after repeated failures
_SURPLUS = 0.3  # threads that wait, on average, from which on there are too many
_LEAST = 0.01  # seconds that a measurement must cover


def waited_s() -> float | None:
    """Return the seconds for which threads of this process were ready, but waited for a core.

    None on systems that do not count them. (Linux: second number in /proc/PID/task/TID/schedstat.)
    """
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[1])
            except ProcessLookupError:  # the thread has just ended
                continue
    except (OSError, IndexError, ValueError):
        return None
    return 1e-9 * total


class Cores:
    """Decides how many threads kernels use.

    Args:
        waited: seconds for which the process waited so far, or None if unknown.
        used: processor seconds of the process so far.
        clock: seconds.
    """

    def __init__(
        self,
        waited: Callable[[], float | None] = waited_s,
        used: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._waited, self._used, self._clock = waited, used, clock
        self._spared, self._hold, self._until = 0, HOLD[0], 0.0
        self._seen = self._measured()
        # torch's number of threads before the first thread entered `for_kernels`, and threads inside
        self._all, self._inside = 1, 0
        self._lock, self._local = threading.Lock(), threading.local()

    def threads(self) -> int:
        """Return torch's number of threads, less those that were spared in the last `adapt`."""
        return max(1, self._most() - self._spared)

    @contextmanager
    def for_kernels(self) -> Iterator[None]:
        """In this context, kernels keep their threads and torch's own operators have one.

        An engine uses it where torch's operators are a small part: their parallel regions wait for cores like
        any other, and their results depend on the number of threads.
        """
        if getattr(self._local, "inside", False):
            yield
            return
        with self._lock:
            if self._inside == 0:
                self._all = torch.get_num_threads()
            self._inside += 1
        self._local.inside = True
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._all)
            self._local.inside = False
            with self._lock:
                self._inside -= 1

    def _most(self) -> int:
        return self._all if getattr(self._local, "inside", False) else torch.get_num_threads()

    def adapt(self) -> None:
        """Measure how long threads waited since the last time, and change the number of threads.

        An engine calls it before a prediction, a trainer before a step.
        """
        most, now = self._most(), self._clock()
        if most == 1 or now - self._seen[0] < INTERVAL:
            return
        before, self._seen = self._seen, self._measured()
        if before[1] is None or self._seen[1] is None:
            return
        waited, used = self._seen[1] - before[1], self._seen[2] - before[2]
        if waited + used < _LEAST:
            return
        surplus = waited / (waited + used) * self.threads()
        if surplus > _SURPLUS:
            self._spared = min(most - 1, self._spared + max(1, round(surplus)))
            self._hold, self._until = min(2 * self._hold, HOLD[1]), now + self._hold
        elif now >= self._until:
            self._spared = max(0, self._spared - 1)
            if self._spared == 0 and now >= self._until + self._hold:
                self._hold = HOLD[0]

    def _measured(self) -> tuple[float, float | None, float]:
        return self._clock(), self._waited(), self._used()


_cores = Cores()
threads, adapt, for_kernels = _cores.threads, _cores.adapt, _cores.for_kernels
