"""Keep graphs by call signature: launches are recorded once and replayed without Python.

On a GPU they are CUDA graphs, on a CPU recordings of kernel calls (`dmtl.engine.replay`).

In a folder of photographs, every image may have another size. So a signature is only captured if it repeats
soon, and the graphs are limited in number and memory.
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
    """Capture compute(*inputs) in a CUDA graph.

    Each graph has its own memory, which is freed when the graph is dropped.

    Returns:
        A function that replays the graph, the outputs, and the bytes of device memory that the graph holds.
    """
    device = inputs[0].device
    with torch.cuda.device(device):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        # An earlier eager call compiled and measured. This one is for libraries that prepare each thread.
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
    """Keep the most recently used graphs.

    A signature is captured at its second call, if fewer than `limit` new signatures came in between. All
    others are computed eagerly, because their graphs would be dropped before a replay.

    Args:
        capture: function (compute, inputs) -> (replay, outputs, bytes) that captures compute(*inputs); it
            returns None if that is impossible.
        limit: maximum number of graphs; the least recently used one is dropped first.
        memory: maximum bytes that all graphs may hold. A signature whose graph alone needs more is computed
            eagerly: launches are a small part of its time.
    """

    def __init__(self, capture: Capture = cuda_capture, limit: int = 8, memory: float = float("inf")):
        self._capture, self._limit, self._memory = capture, limit, memory
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()
        # key -> whether it stays eager, because a graph is impossible or too large
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    @property
    def held(self) -> int:
        """Return the bytes of memory that all graphs hold."""
        return sum(graph.size for graph in self._kept.values())

    def __call__(self, key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> Any:
        """Return compute(*inputs) in tensors that the caller owns.

        Args:
            key: everything that the computation depends on (also shapes), except the elements of the inputs.
            compute: function of the inputs that returns tensors in dicts, lists and tuples.
            inputs: tensors on the device.
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
        eager = self._seen.get(key)  # None: not seen recently
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
