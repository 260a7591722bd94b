"""CUDA graphs by call signature: launches are recorded once and replayed without the host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dmtl.runtime.capture import capture

Compute = Callable[..., Any]  # tensors -> tensors in dicts, lists and tuples
Capture = Callable[[Compute, Sequence[Tensor]], tuple[Callable[[], None], Any]]

WARM_UP = 2  # eager calls before a capture: they compile, measure and fill caches


class CudaCapture:
    """Capture on a separate stream. All graphs share one memory pool: their results are copied out before
    another one is replayed."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Compute, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Any]:
        device = inputs[0].device
        with torch.cuda.device(device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
        return capture(lambda: compute(*inputs), device, WARM_UP, self._pool)


class Graphs:
    """The most recently used graphs.

    Args:
        capture: (compute, inputs) -> (replay, outputs): records compute(*inputs) on these very tensors.
        limit: graphs to keep; the least recently used one is dropped first.
    """

    def __init__(self, capture: Capture | None = None, limit: int = 8):
        self._capture, self._limit = capture or CudaCapture(), limit
        self._kept: OrderedDict[Hashable, tuple] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> Any:
        """Return compute(*inputs) in tensors that the caller owns.

        Args:
            key: all that the computation depends on besides the inputs' elements (shapes too).
        """
        if key not in self._kept:
            own = [x.clone() for x in inputs]
            if len(self._kept) >= self._limit:
                self._kept.popitem(last=False)  # before the capture, so that its memory can be reused
            self._kept[key] = (own, *self._capture(compute, own))
        self._kept.move_to_end(key)
        own, replay, outputs = self._kept[key]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        replay()
        return tree_map_only(Tensor, Tensor.clone, outputs)
