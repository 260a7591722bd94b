"""Describe what a backend supports, and explain why it cannot serve a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """Conditions under which a backend's module can serve its operator.

    Attributes:
        devices: device types of the tensors.
        dtypes: floating-point dtypes of the operator's data.
        available: returns reasons why the backend is missing on this machine; empty: it is available.
        shapes: called with the arguments of the forward operator; returns reasons why their shapes are not
            supported; None: all shapes are.
        backward_shapes: the same for the backward operator.
    """

    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    available: Callable[[], list[str]] = list
    shapes: Callable[..., list[str]] | None = None
    backward_shapes: Callable[..., list[str]] | None = None


def why_not(
    support: Support, tensors: Sequence[Tensor], args: Sequence | None = None, backward: bool = False
) -> list[str]:
    """Return why a backend with this support cannot serve a call with these tensors; empty if it can.

    `args` are the arguments of the forward (or `backward`) operator; None: do not check shapes.
    """
    reasons = []
    for device in sorted({tensor.device.type for tensor in tensors} - set(support.devices)):
        reasons.append(f"device {device} is not one of {', '.join(support.devices)}")
    reasons += support.available()
    for dtype in sorted({str(tensor.dtype) for tensor in tensors if tensor.dtype not in support.dtypes}):
        names = ", ".join(str(known).removeprefix("torch.") for known in support.dtypes)
        reasons.append(f"dtype {dtype.removeprefix('torch.')} is not one of {names}")
    shapes = support.backward_shapes if backward else support.shapes
    if args is not None and shapes is not None:
        reasons += shapes(*args)
    return reasons
