"""Replace the operators by their references, for graphs that run without dmtl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .registry import REGISTRY


class references(TorchFunctionMode):
    """In this context, compute and trace every operator of dmtl as the plain torch of its reference.

    There are no gradients (`torch.no_grad`). A graph that is exported inside contains no `dmtl::` operator.
    """

    def __init__(self) -> None:
        super().__init__()
        operators = [o for spec in REGISTRY.values() for o in (spec.forward, *spec.variants)]
        self._by_operator = {getattr(torch.ops.dmtl, o.name): o.reference for o in operators}

    def __torch_function__(
        self, function: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._by_operator.get(function, function)(*args, **(kwargs or {}))
