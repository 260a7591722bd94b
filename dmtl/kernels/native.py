"""Call kernels of the native modules with tensors, and declare what each module supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmtl.runtime import cores, native
from dmtl.runtime.recording import recording
from dmtl.runtime.support import Support

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

Value = Tensor | None | int | float | bool | Sequence[Tensor] | Sequence[int]


def _raw(value: Value) -> Any:
    """Return a tensor as its address, a sequence entry by entry, everything else as it is."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, (list, tuple)):
        return [_raw(entry) for entry in value]
    return value


@dataclass(frozen=True)
class Native:
    """A native module.

    `context` returns the last argument of its kernels for a call on a tensor: the number of threads (CPU) or
    the stream (CUDA).
    """

    device: str
    module: Callable[[], ModuleType | None]
    missing: Callable[[], list[str]]
    context: Callable[[Tensor], int]

    def support(
        self,
        dtypes: Sequence[torch.dtype] = tuple(DTYPES),
        available: Callable[[], list[str]] = list,
        shapes: Callable[..., list[str]] | None = None,
        backward_shapes: Callable[..., list[str]] | None = None,
    ) -> Support:
        """Return what an op supports here: by default every storage type the kernels know, and every shape.

        available: further reasons why this op is missing on this machine.
        """
        here = (self.device,)
        return Support(here, tuple(dtypes), lambda: self.missing() or available(), shapes, backward_shapes)

    def call(self, kernel: str, like: Tensor, **fields: Value) -> None:
        """Run a kernel. `like` names storage type and device; `fields` are the members of its parameter
        struct (tensors as pointers, None as null), all of them."""
        raw = {name: _raw(value) for name, value in fields.items()}
        dtype, context = DTYPES[like.dtype], self.context(like)
        if self.device == "cpu" and (target := recording()) is not None:
            target.kernel(kernel, dtype, context, raw, fields)
        guard = torch.cuda.device_of(like) if self.device == "cuda" else nullcontext()
        module = self.module()
        assert module is not None, "support() is asked first"
        try:
            with guard:
                module.call(kernel, dtype, context, raw)
        except ValueError:
            if kernel in module.kernels():
                raise
            raise RuntimeError(
                f"{module.__name__} was built before {kernel} was added: build dmtl again (pip install -e .)"
            ) from None


CPU = Native("cpu", native.core, native.why_no_core, lambda x: cores.threads())
CUDA = Native(
    "cuda",
    native.core_cuda,
    native.why_no_core_cuda,
    lambda x: torch.cuda.current_stream(x.device).cuda_stream,
)
