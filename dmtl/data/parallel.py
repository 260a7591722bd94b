"""Call a function for many items, optionally in several processes, for example to read a whole data set."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dmtl.errors import WorkerError, one_line

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], items: Sequence[T], workers: int = 0) -> Iterator[R]:
    """Yield `function(item)` for each item, in order.

    torch uses one thread in each call, because a single sample has too few pixels for more. The processes end
    when this process ends, for whatever reason.

    Args:
        function: called with one item. With `workers`, its results are sent between processes, so they should
            be small and contain no tensors.
        items: the arguments of the calls.
        workers: number of processes; 0: call the function in this process.

    Raises:
        WorkerError: a process died. Errors of the function itself also end the loop.
    """
    if not workers:
        yield from (_with_one_thread(function, item) for item in items)
        return
    calls = _Calls(function, items)
    yield from watched(
        DataLoader(
            calls,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=4,
            worker_init_fn=end_if_lost,
        ),
        "--workers",
    )


def watched(loader: DataLoader, option: str) -> Iterator:
    """Iterate over the loader; raise WorkerError if one of its processes dies.

    `option` is the name of the setting for the number of processes: the message suggests to set it to 0.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
        if before is not None and threading.current_thread() is threading.main_thread():
            # DataLoader's own handler would raise in the middle of a step. Waiting for a batch notices, too.
            signal.signal(signal.SIGCHLD, before)
        yield from iterator
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        # torch begins the message of the function's own error with "Caught". Errors of other types come from
        # a result that a process was still sending when it died.
        died = "DataLoader worker" if isinstance(error, RuntimeError) else ""
        if not loader.num_workers or str(error).startswith("Caught ") or not str(error).startswith(died):
            raise
        raise WorkerError(
            f"a process that reads data died ({one_line(error)}): it was killed, it ran out of memory, or "
            f"shared memory {_shared_memory()}is too small: increase it (docker run --shm-size), or set "
            f"{option} to 0"
        ) from None


def end_if_lost(worker: int) -> None:
    """End a DataLoader's worker process if it cannot send a result: the `worker_init_fn` of `watched`
    loaders.

    Without this, the queue would drop the result and the loader would wait for it forever.
    """

    def die(error: BaseException, result: object) -> None:
        print(f"process {os.getpid()} (data worker): {one_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)

    # multiprocessing's own hook for errors while sending
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(die)  # type: ignore[attr-defined]


def _shared_memory() -> str:
    """Return the size of shared memory for a message; "" if there is no /dev/shm."""
    shared = "/dev/shm"
    return f"of {shutil.disk_usage(shared).total / 1e6:,.1f} MB " if os.path.isdir(shared) else ""


def _with_one_thread(function: Callable[[T], R], item: T) -> R:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as loaders do in their workers
    try:
        return function(item)
    finally:
        torch.set_num_threads(threads)


class _Calls(Dataset):
    def __init__(self, function: Callable, items: Sequence):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def _as_it_is(result: Any) -> Any:
    return result
