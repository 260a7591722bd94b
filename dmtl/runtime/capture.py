"""Capture of CUDA graphs: what was launched once is replayed, without the host in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def capture(
    compute: Callable[[], Any], device: torch.device, warm_up: int = 1, pool: Any = None
) -> tuple[Callable[[], None], Any]:
    """Capture compute() in a CUDA graph and return (replay, its outputs), which every replay writes again.

    Only what this thread does can disturb the capture ("thread_local"): other threads may pin memory, as the
    readers of images do, or compute meanwhile.

    Args:
        warm_up: eager calls before, on another stream: they compile, measure and fill caches.
        pool: of `torch.cuda.graph_pool_handle`, to share memory with other graphs; None: its own.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = compute()
    return graph.replay, outputs
