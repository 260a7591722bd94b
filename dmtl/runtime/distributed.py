"""The processes of one distributed run: ranks, connection, and collective operations."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmtl.errors import ConfigError, one_line
from dmtl.runtime.devices import pick_device
from dmtl.runtime.rendezvous import environment, fresh_store

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: longer than the first reading of a data set takes. It only matters
for processes that hang; torchrun notices dead ones at once."""


@dataclass(frozen=True)
class World:
    """The place of this process in a run.

    Attributes:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
        device: device of this process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes files and prints (rank 0)."""
        return self.rank == 0


def connect(device: str | torch.device = "auto") -> World:
    """Connect the processes that torchrun started: with gloo on CPUs, with NCCL on GPUs, one for each
    process.

    Without torchrun, the result is a world of only this process. A second call returns the same world.

    Raises:
        ConfigError: the device does not work on this machine, one GPU ("cuda:1") is requested for several
            processes, there are more processes than GPUs, torchrun's environment variables are incomplete, or
            the other processes cannot be reached.
    """
    size = environment("WORLD_SIZE", 1)
    if size == 1:
        return World(device=pick_device(device))
    rank, local = environment("RANK"), environment("LOCAL_RANK")
    picked = _own_device(device, local, size)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo"
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        try:
            store, rank, size = fresh_store(TIMEOUT)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"process {rank} of {size} cannot join the others at {where} ({one_line(error)})"
            ) from None
        atexit.register(disconnect)
    return World(rank, size, local, picked)


def disconnect() -> None:
    """Disconnect from the other processes. Python calls it automatically at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_device(device: str | torch.device, local: int, size: int) -> torch.device:
    picked = pick_device(device)
    if picked.type != "cuda":
        return picked
    if torch.device("cuda" if device == "auto" else device).index is not None:
        raise ConfigError(f'device must be "auto", "cpu" or "cuda" for {size} processes, got {str(device)!r}')
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun's --nproc-per-node must be at most {torch.cuda.device_count()}, the number of GPUs of "
            f"this machine, got at least {local + 1}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def total(tensor: Tensor) -> Tensor:
    """Sum the tensor over all processes in place and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is true in any process. Waits for the other processes, but not for a GPU."""
    if not dist.is_initialized():
        return flag
    vote = torch.tensor(int(flag))
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote)


def gather(value: Any) -> list:
    """Gather a picklable value from all processes, and return them in the order of the ranks.

    The values must have the same type in all processes. Waits for the other processes.
    """
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all processes have called this function."""
    any_rank(False)
