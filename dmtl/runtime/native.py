"""Load the compiled modules `dmtl._core` (CPU) and `dmtl._core_cuda` once, or say why one is missing."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch


@cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"dmtl.{name}"), ""
    except ModuleNotFoundError as error:
        if error.name != f"dmtl.{name}":
            return None, f"dmtl.{name} cannot be loaded: {error}"
        needed = "nvcc" if name == "_core_cuda" else "C++ compiler"
        return (
            None,
            f"dmtl.{name} was not built (dmtl was installed without {needed}, or with it switched off)",
        )
    except ImportError as error:
        return None, f"dmtl.{name} cannot be loaded: {error}"


def core() -> ModuleType | None:
    """Return the module `dmtl._core`; None if it is missing (see `why_no_core`)."""
    return _load("_core")[0]


def why_no_core() -> list[str]:
    """Return reasons why the CPU kernels are missing; empty if they are available."""
    reason = _load("_core")[1]
    return [reason] if reason else []


def core_cuda() -> ModuleType | None:
    """Return the module `dmtl._core_cuda` without using a GPU; None if it is missing (see
    `why_no_core_cuda`)."""
    return _load("_core_cuda")[0]


def why_no_core_cuda() -> list[str]:
    """Return reasons why the CUDA kernels cannot run here; empty if they can.

    Initialises CUDA only if the module exists.
    """
    reason = _load("_core_cuda")[1]
    if reason:
        return [reason]
    return [] if torch.cuda.is_available() else ["torch sees no CUDA device"]
