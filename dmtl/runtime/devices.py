"""Find devices by name, and count processor cores."""

from __future__ import annotations

import os

import torch

from dmtl.errors import ConfigError, one_line


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device of this name; "auto" is the first GPU if there is one, otherwise the CPU.

    Raises:
        ConfigError: torch does not know the name, or the device does not work on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        known = '"auto", "cpu", "cuda" or "cuda:N"'
        raise ConfigError(f"device must be {known}, got {str(device)!r}") from None
    try:
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch's own message lists all its backends in one long line, so it is not shown.
        raise ConfigError(
            f"device must be one that works on this machine, got {str(device)!r} ({one_line(error)})"
        ) from None
    return picked


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
