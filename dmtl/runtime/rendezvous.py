"""How the processes of a run find each other, also after a restart by torchrun.

torchrun's store outlives the processes, so restarted ones may read the addresses of their dead predecessors
(https://github.com/pytorch/pytorch/issues/135712), and its restart count differs between machines. Here every
start agrees on a new prefix for everything it writes into the store.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from dmtl.errors import ConfigError


def environment(name: str, default: int | None = None) -> int:
    """Read a number set by torchrun. Raises ConfigError if it is missing or not a number."""
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise ConfigError(
            f"the environment variable {name} must be a number, as torchrun sets it, got {value!r}"
        )
    return int(value)


def fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Return a fresh store shared by all processes of this start, the rank and the number of processes.

    Every other process greets the first one with a newly drawn number. The first answers all of them with the
    name of the new start. A process that finds its number in the answer confirms under that name, where
    nothing old can be. An answer to an old greeting is ignored, and greetings are read again.

    Raises:
        RuntimeError, ValueError: the store cannot be reached, or processes are missing.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    mine, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"dmtl/greeting/{rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0:
            greetings = [store.get(f"dmtl/greeting/{r}").decode() for r in range(1, size)]
            store.set("dmtl/answer", " ".join([mine, *greetings]))
            if store.add(f"dmtl/{mine}", 0) == size - 1:
                return dist.PrefixStore(f"dmtl/{mine}/", store), rank, size
        else:
            name, *greetings = store.get("dmtl/answer").decode().split()
            if mine in greetings:
                store.add(f"dmtl/{name}", 1)
                return dist.PrefixStore(f"dmtl/{name}/", store), rank, size
        time.sleep(0.02)
    raise RuntimeError(f"not all {size} processes have come within {timeout}")
