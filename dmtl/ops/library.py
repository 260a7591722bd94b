"""The torch operator library `dmtl`: schema, fake and implementation of every operator are registered through
here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

_LIBRARY = torch.library.Library("dmtl", "DEF")


def register(name: str, schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Register `dmtl::<name>` and return the operator.

    The implementation serves every device, below autograd. An operator that writes an argument writes its
    first, `Tensor(a!)`.
    """
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    if schema.startswith("(Tensor(a!)"):
        _LIBRARY.impl(name, partial(_announced_write, name), "ADInplaceOrView", with_keyset=True)
    torch.library.register_fake(f"dmtl::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.dmtl, name).default


def _announced_write(
    name: str, keyset: torch._C.DispatchKeySet, written: torch.Tensor, *args: object
) -> object:
    """Tell autograd that the first argument changes, so that a backward pass that saved it fails."""
    torch.autograd.graph.increment_version(written)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        operator = getattr(torch.ops.dmtl, name).default
        return operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, written, *args)
