"""The number of threads of CPU kernels: fewer while other processes want the cores.

A parallel kernel ends with its last thread. If that thread waits for a core, the others wait for it, and a
kernel of a tenth of a millisecond takes as long as a time slice of the system. With a busy process on one of
two cores, predictions take up to four times as long with two threads, and less than twice as long with one.
The results of kernels do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

INTERVAL = 0.1  # seconds between two measurements
HOLD = 1.0, 30.0  # back-off before a thread is given back, in seconds: initial and maximum
_ALLOWED = 0.3  # threads that may wait, on average
_LEAST = 0.01  # processor seconds that a measurement must cover


def waited_s() -> float | None:
    """Return the seconds for which threads of this process were ready, but waited for a core.

    None on systems that do not count them. (Linux: second number in /proc/PID/task/TID/schedstat.)
    """
    total = readable = 0
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/schedstat", "rb", buffering=0) as file:
                    total += int(file.read(64).split()[1])
                readable += 1
            except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
                continue
    except (OSError, IndexError, ValueError):
        return None
    return 1e-9 * total if readable else None


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
        self._spared, self._hold, self._until, self._tried = 0, HOLD[0], 0.0, False
        self._seen = self._measured()
        self._lock, self._local = threading.Lock(), threading.local()

    def threads(self) -> int:
        """Return torch's number of threads, less those that were spared in the last `adapt`."""
        return max(1, self._most() - self._spared)

    @contextmanager
    def for_kernels(self) -> Iterator[None]:
        """In this context, kernels that this thread calls keep their threads, and torch's operators have one.

        Engines and training steps use it if torch's operators are a small part: their parallel regions wait
        for cores like any other, and their results depend on the number of threads.
        """
        library = _torch_library()
        if library is None or hasattr(self._local, "most"):
            yield
            return
        # MKL, if torch uses it, has its own number; 0 is that of the process
        set_mkl = getattr(library, "MKL_Set_Num_Threads_Local", lambda number: 0)
        self._local.most = most = torch.get_num_threads()
        library.omp_set_num_threads(1)
        mkl = set_mkl(1)
        try:
            yield
        finally:
            set_mkl(mkl)
            library.omp_set_num_threads(most)
            del self._local.most

    def adapt(self) -> None:
        """Measure how long threads waited since the last time, and change the number of threads.

        An engine calls it before a prediction, a trainer before a step.
        """
        if self._most() == 1 or self._clock() - self._seen[0] < INTERVAL:
            return
        if self._lock.acquire(blocking=False):  # else another thread measures
            try:
                self._change(*self._since_last_time())
            finally:
                self._lock.release()

    def _change(self, waited: float, used: float) -> None:
        if waited + used < _LEAST:
            return
        now, surplus = self._clock(), waited / (waited + used) * self.threads()
        if surplus > _ALLOWED:
            if self._tried:
                self._hold = min(2 * self._hold, HOLD[1])
            self._spared = min(self._most() - 1, self._spared + max(1, round(surplus)))
            self._tried, self._until = False, now + self._hold
        elif now >= self._until:
            if self._spared:
                self._spared, self._tried = self._spared - 1, True
            elif now >= self._until + self._hold:
                self._tried, self._hold = False, HOLD[0]

    def _since_last_time(self) -> tuple[float, float]:
        """Return seconds waited and used; zeros if unknown."""
        before, self._seen = self._seen, self._measured()
        if before[1] is None or self._seen[1] is None:
            return 0.0, 0.0
        return max(0.0, self._seen[1] - before[1]), self._seen[2] - before[2]

    def _measured(self) -> tuple[float, float | None, float]:
        return self._clock(), self._waited(), self._used()

    def _most(self) -> int:
        return getattr(self._local, "most", None) or torch.get_num_threads()


@functools.cache
def _torch_library() -> ctypes.CDLL | None:
    """Return torch's library with OpenMP's functions for the calling thread, or None.

    `torch.set_num_threads` would set the number for threads that start later, too.
    """
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return found if found.omp_set_num_threads else None
    except (OSError, AttributeError):
        return None


_cores = Cores()
threads, adapt, for_kernels = _cores.threads, _cores.adapt, _cores.for_kernels
