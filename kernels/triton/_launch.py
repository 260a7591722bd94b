"""Shared parts of all Triton modules: where they run, and the forms in which kernels are compiled in
advance."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from dmtl.runtime.support import Support

# Triton reads the variable when a kernel is decorated, that is, when its module is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
"""Storage type -> Triton's name of a pointer to it."""


def support(
    shapes: Callable[..., list[str]] | None = None,
    backward_shapes: Callable[..., list[str]] | None = None,
    *,
    products: bool = False,
) -> Support:
    """Return what an operator supports in Triton.

    Args:
        shapes: returns reasons why the shapes of a call are not supported (see `Support`).
        backward_shapes: the same for the backward operator.
        products: whether the kernels multiply matrices, which the interpreter does wrongly in bfloat16.
    """
    wrong = {torch.bfloat16} if products and INTERPRETED else set()
    dtypes = tuple(dtype for dtype in POINTERS if dtype not in wrong)
    return Support(("cpu",) if INTERPRETED else ("cuda",), dtypes, _missing, shapes, backward_shapes)


def _missing() -> list[str]:
    if INTERPRETED or torch.cuda.is_available():
        return []
    return ["torch sees no CUDA device (and TRITON_INTERPRET=1 is not set)"]


def compilation(
    kernel,
    config: dict[str, int],
    constants: dict,
    kinds: dict,
    pointer: str | None = None,
    arch: int = 80,
) -> tuple:
    """Return (kernel, signature, constants, options, arch): one form in which a kernel may be launched.

    Args:
        kernel: the kernel.
        config: launch configuration; keys in capitals are constants of the kernel.
        constants: other constants of the kernel, and None for pointers that are absent.
        kinds: types of arguments by name, in Triton's notation.
        pointer: type of all other arguments that end in `_ptr`; all remaining arguments are i32.
        arch: the oldest architecture on which it may be launched.
    """
    constants = constants | {name: value for name, value in config.items() if name.isupper()}
    options = {name: value for name, value in config.items() if not name.isupper()}
    signature = {
        name: kinds.get(name, pointer if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in constants
    }
    return kernel, signature, constants, options, arch
