"""How the processes of a run find each other, also after torchrun has started them again.

torchrun's store outlives the processes, so that those started again may read the addresses of their dead
predecessors (https://github.com/pytorch/pytorch/issues/135712), and its count of restarts differs between
machines. Here every start agrees on a prefix of its own for everything that is written into the store.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from dmtl.errors import ConfigError


def environment(name: str, default: int | None = None) -> int:
    """A number that torchrun tells every process. Raises ConfigError where it is missing or none."""
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise ConfigError(
            f"the environment variable {name} must be a number, as torchrun sets it, got {value!r}"
        )
    return int(value)


def fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store that all processes of this start share and nobody has written to, rank, number of processes.

    Every other process greets the first one with a number drawn just now. The first answers all of them with
    the name of the new start; who finds its number in the answer confirms, and does so under that name, where
    nothing old can be. An old greeting is answered in vain and read again.

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
