"""The torch operator library `dmtl`: schema, fake and implementation of every operator are registered through
here."""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("dmtl", "DEF")


def register(name: str, schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Register `dmtl::<name>`; returns the operator. The implementation serves every device, below
    autograd."""
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dmtl::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.dmtl, name).default
