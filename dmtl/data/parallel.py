"""Call a function for many items, in several processes if asked to, as for reading a whole data set."""

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
    """Yield `function(item)` of each item, in their order.

    In every call torch has one thread: one sample has too few pixels for more.

    workers: processes; 0 calls the function here. They end with this process, however it ends. Results travel
        between processes, so they should be small and hold no tensors. An error ends the loop; WorkerError if
        a process dies.
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
    """Iterate the loader; WorkerError if one of its processes dies. `option` is the one to set to 0 then."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
        if before is not None and threading.current_thread() is threading.main_thread():
            # DataLoader's own handler would raise in the middle of a step; a wait for a batch notices as well
            signal.signal(signal.SIGCHLD, before)
        yield from iterator
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        # An error of the function itself begins with "Caught"; other types are of a result that a process was
        # still handing over when it died.
        died = "DataLoader worker" if isinstance(error, RuntimeError) else ""
        if not loader.num_workers or str(error).startswith("Caught ") or not str(error).startswith(died):
            raise
        raise WorkerError(
            f"a process that reads data died ({one_line(error)}): it was killed, or ran out of memory, or "
            f"shared memory {_shared_memory()}is too small: raise that (docker run --shm-size), or set "
            f"{option} to 0"
        ) from None


def end_if_lost(worker: int) -> None:
    """End a process of a DataLoader if it cannot hand over a result, which its queue would drop and wait for
    forever: a `worker_init_fn` of loaders that are `watched`."""

    def die(error: BaseException, result: object) -> None:
        print(f"process {os.getpid()} (data worker): {one_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)

    # the hook that multiprocessing offers for this
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(die)  # type: ignore[attr-defined]


def _shared_memory() -> str:
    """Return the size of shared memory, for a message; "" if it is not a folder."""
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
