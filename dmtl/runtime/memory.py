"""Memory of the machine: how much is available and used, and a pool that reuses it across calls.

While a pool is in use, large outputs of CPU kernels come from it. The page faults of a fresh block of many
megabytes cost more than many operators do. A heap that returns such blocks to the system and gets them back
also fragments. A pool keeps blocks of the requested sizes instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_SMALLEST = 1 << 20  # bytes; smaller tensors are allocated by torch
_CGROUP = Path("/sys/fs/cgroup")
_local = threading.local()


class Pool:
    """Blocks of memory for tensors: a block is free again after its last tensor was deleted."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = defaultdict(list)
        self.blocks = 0  # allocated from the system so far

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """In this context, use the pool for large outputs of CPU kernels that this thread calls."""
        before = getattr(_local, "pool", None)
        _local.pool = self
        try:
            yield
        finally:
            _local.pool = before

    def release(self) -> None:
        """Return the free blocks to the system."""
        self._free.clear()

    def borrow(self, size: int) -> Tensor:
        """Return uint8 [size] with undefined contents."""
        try:
            block = self._free[size].pop()
        except IndexError:
            block = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                block.madvise(mmap.MADV_HUGEPAGE)
            self.blocks += 1
        loan = (ctypes.c_char * size).from_buffer(block)  # lives as long as the tensors that use it
        weakref.finalize(loan, self._free[size].append, block)
        return torch.frombuffer(loan, dtype=torch.uint8)


def empty(
    shape: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
    device: torch.device | None = None,
) -> Tensor:
    """Allocate like torch.empty; large CPU tensors come from the pool in use. `device` None means the CPU.

    With channels_last the shape is [B, C, H, W].
    """
    if device is not None and device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, memory_format=memory_format, device=device)
    pool = getattr(_local, "pool", None)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if pool is None or size < _SMALLEST:
        return torch.empty(tuple(shape), dtype=dtype, memory_format=memory_format)
    flat = pool.borrow(size).view(dtype)
    if memory_format is torch.contiguous_format:
        return flat.view(tuple(shape))
    b, c, h, w = shape
    return flat.view(b, h, w, c).permute(0, 3, 1, 2)


def empty_like(x: Tensor) -> Tensor:
    """Allocate like torch.empty_like; if x is large, dense and on the CPU, allocate like `empty`."""
    if getattr(_local, "pool", None) is not None and x.device.type == "cpu" and x.nbytes >= _SMALLEST:
        if x.is_contiguous():
            return empty(x.shape, x.dtype)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return empty(x.shape, x.dtype, torch.channels_last)
    return torch.empty_like(x)


def available_bytes(device: torch.device) -> int | None:
    """Return the free bytes of a GPU or, for a CPU, of the machine and its container; None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = [value for value in (_meminfo(), _cgroup()) if value is not None]
    return min(limits) if limits else None


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _cgroup() -> int | None:
    """Return the bytes that the container's limit leaves."""
    try:
        limit, used, stat = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        # Used memory includes the cache of files; the kernel frees its inactive part when needed.
        cache = next(line.split()[1] for line in stat.splitlines() if line.startswith("inactive_file "))
        return None if limit.strip() == "max" else int(limit) - int(used) + int(cache)
    except (OSError, ValueError, StopIteration):
        return None


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


_KEPT = 1 << 30
# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """Let the C library keep up to 1 GiB of freed heap memory in this process, if it supports that.

    By default, glibc returns large blocks to the system. A training step that allocates the same blocks again
    then spends a tenth of its time on page faults.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, _KEPT):
            mallopt(_M_TRIM_THRESHOLD, _KEPT)


def return_freed() -> None:
    """Return freed heap memory to the system, if the C library supports that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that a device or the machine ran out of memory."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "allocate memory" in str(error) or "out of memory" in str(error)
