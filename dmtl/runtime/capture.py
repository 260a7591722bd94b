"""Capture CUDA graphs: kernels that were launched once are replayed without work on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def capture(
    compute: Callable[[], Any], device: torch.device, warm_up: int = 1
) -> tuple[Callable[[], None], Any]:
    """Capture `compute()` in a CUDA graph.

    The capture mode is "thread_local": other threads may compute, or pin memory as the readers of images do,
    in the meantime.

    Args:
        compute: the function to capture.
        device: a GPU.
        warm_up: number of eager calls before the capture, on another stream; they compile kernels, measure
            alternatives and fill caches.

    Returns:
        A function that replays the graph, and the outputs of `compute`, which every replay overwrites.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = compute()
    return graph.replay, outputs
