"""Graphs by call signature: launches are recorded once and replayed without Python.

On a GPU they are CUDA graphs, on a CPU recordings of kernel calls (`dmtl.engine.replay`).

A folder of photographs may have an image size for each image, so a signature is captured only when it comes
back soon, and the graphs are bounded in number and in memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dmtl.runtime.capture import capture

Compute = Callable[..., Any]  # tensors -> tensors in dicts, lists and tuples
Captured = tuple[Callable[[], None], Any, int]
Capture = Callable[[Compute, Sequence[Tensor]], Captured | None]


def cuda_capture(compute: Compute, inputs: Sequence[Tensor]) -> Captured:
    """Capture compute(*inputs); return (replay, outputs, bytes of device memory that the graph holds).

    Each graph has its own memory, which the device gets back when the graph is dropped.
    """
    device = inputs[0].device
    with torch.cuda.device(device):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        # The first, eager call compiled and measured; this one is for libraries that prepare each thread.
        replay, outputs = capture(lambda: compute(*inputs), device, warm_up=1)
        torch.cuda.empty_cache()
        return replay, outputs, torch.cuda.memory_reserved() - before


class _Graph(NamedTuple):
    own: list[Tensor]  # inputs that replays read
    replay: Callable[[], None]
    outputs: Any
    size: int  # bytes

    def run(self, inputs: Sequence[Tensor]) -> Any:
        for mine, given in zip(self.own, inputs, strict=True):
            mine.copy_(given)
        self.replay()
        return tree_map_only(Tensor, Tensor.clone, self.outputs)


class Graphs:
    """The most recently used graphs.

    A signature is captured when it comes again before `limit` others came for the first time. Others are
    computed eagerly: their graphs would be dropped before they were replayed.

    Args:
        capture: (compute, inputs) -> (replay, outputs, bytes): records compute(*inputs) on these tensors; or
            None if it cannot be recorded.
        limit: graphs to keep; the least recently used one is dropped first.
        memory: bytes that they may hold together. A signature whose graph alone needs more is computed
            eagerly: its launches are a small part of its time.
    """

    def __init__(self, capture: Capture = cuda_capture, limit: int = 8, memory: float = float("inf")):
        self._capture, self._limit, self._memory = capture, limit, memory
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, bool] = (
            OrderedDict()
        )  # key -> whether a graph is impossible or too large
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    @property
    def held(self) -> int:
        """Return the bytes of memory that the graphs hold."""
        return sum(graph.size for graph in self._kept.values())

    def __call__(self, key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> Any:
        """Return compute(*inputs) in tensors that the caller owns.

        Args:
            key: all that the computation depends on besides the inputs' elements (shapes too).
        """
        if not self._lock.acquire(blocking=False):  # another thread writes the graphs' memory
            return compute(*inputs)
        try:
            return self._recorded(key, compute, inputs)
        finally:
            self._lock.release()

    def _recorded(self, key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].run(inputs)
        eager = self._seen.get(key)  # None: not seen lately
        if eager is not False:
            self._remember(key, bool(eager))
            return compute(*inputs)
        own = [x.clone() for x in inputs]
        if len(self._kept) >= self._limit:
            self._kept.popitem(last=False)  # before the capture, so that its memory can be reused
        captured = self._capture(compute, own)
        if captured is None:
            self._remember(key, True)
            return compute(*inputs)
        graph = _Graph(own, *captured)
        eager = graph.size > self._memory
        self._remember(key, eager)
        if not eager:
            self._kept[key] = graph
            while self.held > self._memory:
                self._kept.popitem(last=False)
        return graph.run(inputs)

    def _remember(self, key: Hashable, eager: bool) -> None:
        self._seen[key] = eager
        self._seen.move_to_end(key)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
