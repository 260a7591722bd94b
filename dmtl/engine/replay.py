"""A CPU's counterpart of a CUDA graph: calls that are recorded once and run again without Python.

On a small image Python takes as long as the kernels: checks, the dispatcher and the choice of a backend cost
about 0.1 ms an operator. A recording keeps the native kernels with their parameters, and between them the
library's operators, on its own memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dmtl.engine.graphs import Captured, Compute
from dmtl.ops.registry import serve
from dmtl.runtime import native
from dmtl.runtime.memory import Pool
from dmtl.runtime.recording import record_in

T = TypeVar("T")
aten = torch.ops.aten
_ALLOCATIONS = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def cpu_capture(compute: Compute, inputs: Sequence[Tensor]) -> Captured | None:
    """Record compute(*inputs); return (replay, outputs, bytes of memory that the recording holds).

    Returns None if the calls depend on the inputs' elements, so that they cannot be repeated for others.
    """
    recorder = _Recorder()
    try:
        with recorder.arena.in_use(), record_in(recorder), recorder:
            outputs = compute(*inputs)
    except _ValueNeeded:
        return None
    return recorder.replay, outputs, recorder.arena.size


class _ValueNeeded(Exception):
    """The computation reads an element of a tensor in Python."""


class _Arena(Pool):
    """Memory of a recording. A block that the computation frees is used again, as it is in every replay."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.addresses: set[int] = set()

    def borrow(self, size: int) -> Tensor:
        """Return the beginning of the smallest free block that suffices."""
        blocks = self.blocks
        free = (length for length, some in self._free.items() if some and length >= size)
        block = super().borrow(min(free, default=size))
        self.size += size if self.blocks > blocks else 0
        self.addresses.add(_storage(block))
        return block[:size]


class _Recorder(TorchDispatchMode):
    """Runs a computation and keeps its calls: `steps` are consecutive kernels, or one operator of the
    library."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = _Arena()
        self._steps: list[Callable[[], object]] = []
        self._kernels: Any = None  # _core.Calls to which the next kernel belongs
        self._kept: dict[int, Tensor] = {}  # what kernels read besides the arena

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do not let torch import its compiler (seconds, 160 MB) to keep it away from this mode."""
        return False

    def replay(self) -> None:
        for step in self._steps:
            step()

    def kernel(
        self, name: str, dtype: int, threads: int, raw: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> None:
        """Keep a call of a native kernel, and the tensors that its pointers refer to."""
        if self._kernels is None:
            core = native.core()
            assert core is not None
            self._kernels = core.Calls()
            self._steps.append(self._kernels.run)
        self._kernels.add(name, dtype, threads, raw)
        for x in _tensors(fields):
            if _storage(x) not in self.arena.addresses:
                self._kept[x.data_ptr()] = x

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "dmtl":
            with self:  # the library's operators in its implementation are recorded, too
                return serve(func)(*args, **kwargs)
        if _DEPENDS_ON_VALUES & set(func.tags):
            raise _ValueNeeded
        out = func(*args, **kwargs)
        if func.namespace == "profiler":
            return out
        if func in _ALLOCATIONS:
            return self._in_arena(out)
        results = _tensors(out)
        if func._schema.is_mutable:
            self._add(partial(func, *self._aliases(args), **self._aliases(kwargs)))
        elif {_storage(x) for x in results} - {_storage(x) for x in _tensors((args, kwargs))}:
            out = tree_map_only(Tensor, self._copy_in_arena, out)
            targets = self._aliases(_tensors(out))
            self._add(partial(_repeat, func, self._aliases(args), self._aliases(kwargs), targets))
        return out  # else it is a view

    def _add(self, step: Callable[[], object]) -> None:
        self._steps.append(step)
        self._kernels = None

    def _in_arena(self, x: Tensor) -> Tensor:
        """Return memory like that of a new tensor, without elements that matter."""
        if x.numel() == 0:
            return x
        flat = self.arena.borrow(x.untyped_storage().nbytes()).view(x.dtype)
        return flat.as_strided(x.shape, x.stride())

    def _copy_in_arena(self, x: Tensor) -> Tensor:
        return self._in_arena(x).copy_(x)

    def _aliases(self, values: T) -> T:
        """Replace tensors in the arena by others on the same memory, which do not claim its blocks."""

        def alias(x: Tensor) -> Tensor:
            address, size = _storage(x), x.untyped_storage().nbytes()
            if address not in self.arena.addresses:
                return x
            memory = (ctypes.c_char * (size - size % x.itemsize)).from_address(address)
            flat = torch.frombuffer(memory, dtype=x.dtype)
            return flat.as_strided(x.shape, x.stride(), x.storage_offset())

        return tree_map_only(Tensor, alias, values)


def _repeat(func: Any, args: Sequence, kwargs: Mapping[str, Any], results: Sequence[Tensor]) -> None:
    """Run an operator of the library again and write its results where they were."""
    for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
        old.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
