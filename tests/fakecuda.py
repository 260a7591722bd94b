"""`torch.cuda` on the CPU, as far as capturing and timing go: a test of code that needs a device.

A captured graph replays the torch operators that it saw, into the same tensors. Time is an account: `kernel`
takes time of the device, `host` of the host, and nothing else takes any. A graph holds all results of its
operators. As on a device, a capture in mode
"global" fails what any thread asks of the driver meanwhile (`pin`); so does a captured synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAUNCH_S = 5e-6


class FakeCuda:
    def __init__(self, patch: pytest.MonkeyPatch):
        self.host_s = self.device_s = 0.0
        self.captures = self.reserved = 0  # the latter: bytes of the graphs that are alive
        self._graph: FakeGraph | None = None  # that is being captured
        self._mode = ""
        fake = self

        class Event:
            def __init__(self, **options):
                self.at_s = 0.0

            def record(self) -> None:
                self.at_s = max(fake.host_s, fake.device_s)

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other) -> float:
                return 1e3 * (other.at_s - self.at_s)

        class Stream:
            def wait_stream(self, other) -> None:
                pass

        for name, value in dict(
            device=lambda device: nullcontext(), graph_pool_handle=object, Stream=Stream,
            current_stream=Stream, stream=lambda stream: nullcontext(), CUDAGraph=lambda: FakeGraph(fake),
            graph=self._capture, Event=Event, synchronize=lambda: None,
            is_current_stream_capturing=lambda: self._graph is not None, empty_cache=lambda: None,
            memory_reserved=lambda: self.reserved,
        ).items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)

    def host(self, seconds: float) -> None:
        self.host_s += seconds

    def kernel(self, seconds: float) -> None:
        if self._graph is not None:
            self._graph.work.append(lambda: self._run(seconds))
        else:
            self.host_s += LAUNCH_S
            self._run(seconds)

    def _run(self, seconds: float) -> None:
        self.device_s = max(self.host_s, self.device_s) + seconds

    def pin(self) -> None:
        if self._graph is not None and self._mode == "global":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    @contextmanager
    def _capture(self, graph: FakeGraph, pool=None, stream=None, capture_error_mode="global"):
        self._graph, self._mode = graph, capture_error_mode
        self.captures += 1
        try:
            with graph:
                yield
        finally:
            self._graph = None


class FakeGraph(TorchDispatchMode):
    def __init__(self, fake: FakeCuda):
        super().__init__()
        self._fake = fake
        self.work: list[Callable[[], None]] = []
        self._size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        self._grow(sum(x.nbytes for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)))

        def again() -> None:
            for old, new in zip(tree_leaves(outputs), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)

        self.work.append(again)
        return outputs

    def _grow(self, size: int) -> None:
        self._size += size
        self._fake.reserved += size

    def __del__(self) -> None:
        self._grow(-self._size)

    def replay(self) -> None:
        self._fake.host_s += LAUNCH_S
        for work in self.work:
            work()
