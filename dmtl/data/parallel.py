"""One function for many items, in several processes where that pays: what reading a whole data set needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], items: Sequence[T], workers: int = 0) -> Iterator[R]:
    """`function(item)` of each item, in their order.

    In every call torch has one thread: pixels of one sample are too few for more, which wait for each other.

    workers: processes; 0 calls the function here. They end with this process, however it ends; results
        travel between processes, so they are small and hold no tensors. An error ends the loop.
    """
    if not workers:
        yield from (_with_one_thread(function, item) for item in items)
        return
    calls = _Calls(function, items)
    yield from DataLoader(
        calls, batch_size=None, num_workers=workers, collate_fn=_as_it_is, prefetch_factor=4
    )


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
