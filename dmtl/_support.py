"""What a backend supports, as data, and the one function that explains why it cannot serve a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """Conditions under which a backend's module can serve its op.

    devices: device types of the tensors. dtypes: floating dtypes of the op's data. available: reasons why the
    backend is missing on this machine as a whole (empty: it is here).
    """

    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    available: Callable[[], list[str]] = list


def why_not(support: Support, tensors: Sequence[Tensor]) -> list[str]:
    """Reasons why a backend with this support cannot take a call with these data tensors; empty when it
    can."""
    reasons = []
    for device in sorted({tensor.device.type for tensor in tensors} - set(support.devices)):
        reasons.append(f"device {device} is not one of {', '.join(support.devices)}")
    reasons += support.available()
    for dtype in sorted({str(tensor.dtype) for tensor in tensors if tensor.dtype not in support.dtypes}):
        names = ", ".join(str(known).removeprefix("torch.") for known in support.dtypes)
        reasons.append(f"dtype {dtype.removeprefix('torch.')} is not one of {names}")
    return reasons
