"""Let the processes of a run find each other, also after a restart by torchrun.

torchrun's store outlives the processes, so restarted processes may read the addresses of their dead
predecessors (https://github.com/pytorch/pytorch/issues/135712). Its restart count may differ between
machines, so it does not help. Here the processes of each start agree on a new prefix for everything that they
write to the store.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from dmtl.errors import ConfigError


def environment(name: str, default: int | None = None) -> int:
    """Return the number in an environment variable that torchrun sets.

    Raises:
        ConfigError: the variable is not a number, or is missing and there is no default.
    """
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise ConfigError(
            f"the environment variable {name} must be a number, as torchrun sets it, got {value!r}"
        )
    return int(value)


def fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Return a store that only the processes of this start use, the rank, and the number of processes.

    Every process except the first one writes a greeting with a new random number. The first process answers
    all greetings with the name of the new start. A process that finds its own number in the answer confirms
    it under that name, where there cannot be any old entries. A process ignores answers to old greetings; the
    first one then reads the greetings again.

    Raises:
        RuntimeError: the store cannot be reached, or processes are missing.
        ValueError: the store cannot be reached.
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
    raise RuntimeError(f"not all {size} processes joined within {timeout}")
