"""The compiled modules `dmtl._core` (CPU) and `dmtl._core_cuda`: loaded once, and why one is missing."""

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
        return None, f"dmtl.{name} was not built (no {needed} when dmtl was installed, or switched off)"
    except ImportError as error:
        return None, f"dmtl.{name} cannot be loaded: {error}"


def core() -> ModuleType | None:
    """Return `dmtl._core`, or None; `why_no_core` says why."""
    return _load("_core")[0]


def why_no_core() -> list[str]:
    """Return reasons why the CPU kernels are missing; empty if they are available."""
    reason = _load("_core")[1]
    return [reason] if reason else []


def core_cuda() -> ModuleType | None:
    """Return `dmtl._core_cuda`, or None; `why_no_core_cuda` says why. Does not touch a device."""
    return _load("_core_cuda")[0]


def why_no_core_cuda() -> list[str]:
    """Return reasons why the CUDA kernels cannot run here; empty if they can. Touches a device only if the
    module exists."""
    reason = _load("_core_cuda")[1]
    if reason:
        return [reason]
    return [] if torch.cuda.is_available() else ["torch sees no CUDA device"]
