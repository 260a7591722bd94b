"""Mixed precision for the fused ops: under `torch.autocast` they
compute in its dtype, like torch's own products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cast(x: Tensor | None) -> Tensor | None:
    """x in autocast's dtype where autocast is on for its device, else as it is."""
    if x is None or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def cast_all(xs: Sequence[Tensor]) -> list[Tensor]:
    """`cast` of each."""
    return [cast(x) for x in xs]
