"""Overlap reading, computing and writing: threads read ahead, the caller computes, other threads write.

The order is kept, both queues are short, and an exception in a thread is raised in the caller.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass
class Waits:
    """Seconds that the caller waited for threads that read, and for threads that write."""

    reading: float = 0.0
    writing: float = 0.0

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Add the time spent in this context to the stage "reading" or "writing"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)


def read_ahead(calls: Generator[tuple[Executor, Callable[[], T]]], depth: int, waits: Waits) -> Generator[T]:
    """Yield the results of `calls` in order; each is computed by its executor, at most `depth` at a time.

    The next call is requested only when it can be started, so the results of earlier calls may decide where
    `calls` ends. Closing this generator cancels calls that have not started, and closes `calls`.
    """
    under_way: deque[Future] = deque()
    try:
        while True:
            while len(under_way) < depth and (call := next(calls, None)) is not None:
                executor, function = call
                under_way.append(executor.submit(function))
            if not under_way:
                return
            with waits.during("reading"):
                result = under_way.popleft().result()
            yield result
    finally:
        for future in under_way:
            future.cancel()
        calls.close()


def batched(
    results: Iterable[T], key: Callable[[T], K | None], limit: Callable[[K], int]
) -> Iterator[list[T]]:
    """Yield lists of consecutive results with equal keys, at most `limit(key)` each; for key None, one
    alone."""
    batch: list[T] = []
    held: K | None = None
    for result in results:
        found = key(result)
        if batch and found != held:
            yield batch
            batch = []
        batch.append(result)
        held = found
        if held is None or len(batch) >= limit(held):
            yield batch
            batch = []
    if batch:
        yield batch


class WriteBehind:
    """Collect the results of writing jobs in the order in which the jobs were added.

    Args:
        collect: called with the result of each job, in the caller's thread.
        depth: maximum number of unfinished jobs.
        budget: maximum total weight of unfinished jobs; a single job may weigh more.
        waits: the time of waiting is added here.
    """

    def __init__(self, collect: Callable[[Any], None], depth: int, budget: int, waits: Waits):
        self._collect, self._depth, self._budget, self._waits = collect, depth, budget, waits
        self._jobs: deque[tuple[Future, int]] = deque()
        self._weight = 0

    def room(self, weight: int = 0) -> None:
        """Wait until a job of this weight may be added; collect finished jobs, and raise their errors."""
        while self._jobs and (
            self._jobs[0][0].done() or len(self._jobs) >= self._depth or self._weight + weight > self._budget
        ):
            self._collect_first()

    def add(self, job: Future, weight: int = 0) -> None:
        """Add a job; the caller must have called `room` with its weight."""
        self._jobs.append((job, weight))
        self._weight += weight

    def drain(self) -> None:
        """Wait for all jobs and collect those that succeed; then raise the first error."""
        errors = []
        while self._jobs:
            try:
                self._collect_first()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _collect_first(self) -> None:
        job, weight = self._jobs[0]
        with self._waits.during("writing"):
            job.exception()  # waits; if the wait is interrupted, the job stays in the queue
        self._jobs.popleft()
        self._weight -= weight
        self._collect(job.result())
