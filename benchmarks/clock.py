"""Statistics of times, and the limits of the machine, measured in the same way by all benchmarks."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from dmtl.nn.precision import DTYPES, tf32
from dmtl.runtime.measure import seconds


def fastest(call: Callable[[], object], device: torch.device, rounds: int = 9) -> float:
    """Return the time of the shortest of `rounds` calls after a warm-up, in seconds."""
    for _ in range(3):
        call()
    return min(seconds(call, device) for _ in range(rounds))


def quantiles_ms(times_s: list[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile in milliseconds."""
    if len(times_s) == 1:
        times_s = times_s * 2
    cuts = statistics.quantiles(times_s, n=5, method="inclusive")
    return {"median_ms": 1e3 * statistics.median(times_s), "p20_ms": 1e3 * cuts[0], "p80_ms": 1e3 * cuts[-1]}


def ratios(times_s: Mapping[str, list[float]], reference: str) -> dict[str, float]:
    """Return name -> speed relative to the reference.

    It is the median over rounds of the ratio, because the load of the machine varies more between rounds than
    within one.
    """
    return {
        name: statistics.median(r / t for r, t in zip(times_s[reference], times, strict=True))
        for name, times in times_s.items()
    }


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    source = torch.ones(1 << 26 if device.type == "cpu" else 1 << 30, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device)


@functools.cache
def compute_rate(precision: str, device: torch.device) -> float:
    """Return the operations per second of torch's fastest dense product.

    This is a square matrix product or, on a CPU whose BLAS may not use the widest vectors, a direct
    convolution.
    """
    dtype, n = DTYPES[precision], 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    with torch.inference_mode(), tf32(precision == "tf32"):
        rates = [2 * n**3 / fastest(lambda: a @ b, device)]
        if device.type == "cpu":
            x = torch.randn(1, 256, 32, 32).to(dtype, memory_format=torch.channels_last)
            w = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
            rates.append(2 * 9 * 256**2 * 32**2 / fastest(lambda: F.conv2d(x, w, padding=1), device))
    return max(rates)
