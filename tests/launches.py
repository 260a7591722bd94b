"""Count the kernels that a GPU would launch, on a CPU: torch's operators that compute something, and launches
of Triton's interpreter, which are not executed. What is computed meanwhile is nonsense."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmtl.ops.registry import serve

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "detach"}
"""Operators that launch nothing, besides views."""

MORE = {"baddbmm": 2}
"""Operators that launch more than one kernel: this one copies its bias first."""


def computes(func: torch._ops.OpOverload) -> bool:
    """Whether an operator computes something: views and allocations do not."""
    name = func._schema.name.split("::")[1]
    return not (func.is_view or name in FREE or func.namespace == "profiler")


class Launches(TorchDispatchMode):
    """Count launches of the torch operators and Triton kernels in this context."""

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self.counts: Counter[str] = Counter()
        from triton.runtime.interpreter import GridExecutor

        patch.setattr(GridExecutor, "__call__", lambda kernel, *args, **kwargs: self.add(kernel.fn.__name__))

    def add(self, name: str, number: int = 1) -> None:
        self.counts[name] += number

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if func.namespace == "dmtl":
            with self:  # what the operator does itself counts, not that it is called
                return serve(func)(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if computes(func):
            biased = name == "convolution" and args[2] is not None
            self.add(name, 2 if biased else MORE.get(name, 1))
        return func(*args, **kwargs)
