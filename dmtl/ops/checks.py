"""Check the arguments of operators.

The checks run once, in the public function; nothing below checks shapes or dtypes again.

Values (indices, keys) can be read without a device synchronisation on the CPU only, so `check_values` runs
inside the operator for CPU tensors; kernels on other devices return a row of NaN for a bad index.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from . import philox

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fail(
    op: str, argument: str, contract: str, actual: object, error: type[Exception] = ValueError
) -> NoReturn:
    """Raise `error` with the wording that all checks share."""
    raise error(f"{op}: {argument} must be {contract}, got {actual}")


def tensor(op: str, argument: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        fail(op, argument, "a tensor", type(value).__name__, TypeError)
    return value


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def integer(op: str, argument: str, value: object) -> int:
    """Require an int, and not a bool."""
    if not isinstance(value, int) or isinstance(value, bool):
        fail(op, argument, "an int", type(value).__name__, TypeError)
    return value


def data(op: str, argument: str, x: object) -> Tensor:
    """Require a floating tensor [B, ...]."""
    x = tensor(op, argument, x)
    if x.dtype not in FLOATS:
        fail(op, argument, "float32, bfloat16, float16 or float64", dtype_name(x.dtype), TypeError)
    if x.dim() < 1:
        fail(op, argument, "of shape [B, ...]", "a tensor without dimensions")
    return x


def like(op: str, argument: str, x: object, model: Tensor, model_name: str) -> None:
    """Require the shape, dtype and device of `model`."""
    x = tensor(op, argument, x)
    same_dtype(op, argument, x, model, model_name)
    if x.shape != model.shape:
        fail(op, argument, f"of {model_name}'s shape {list(model.shape)}", list(x.shape))
    on_device(op, argument, x, model.device)


def same_dtype(op: str, argument: str, x: Tensor, model: Tensor, model_name: str) -> None:
    if x.dtype != model.dtype:
        contract = f"of {model_name}'s dtype {dtype_name(model.dtype)}"
        fail(op, argument, contract, dtype_name(x.dtype), TypeError)


def on_device(op: str, argument: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        fail(op, argument, f"on {device}", x.device)


def rows(op: str, argument: str, t: object, model: Tensor) -> None:
    """Require int64 [B], one entry for each row of `model`."""
    t = tensor(op, argument, t)
    if t.dtype != torch.int64:
        fail(op, argument, "int64", dtype_name(t.dtype), TypeError)
    if t.shape != model.shape[:1]:
        fail(op, argument, f"of shape [{model.shape[0]}]", list(t.shape))
    on_device(op, argument, t, model.device)


def tables(op: str, model: Tensor, **named: object) -> None:
    """Require float32 [S] schedule tables, all of one length."""
    size = None
    for argument, table in named.items():
        table = tensor(op, argument, table)
        if table.dtype != torch.float32:
            fail(op, argument, "float32", dtype_name(table.dtype), TypeError)
        if table.dim() != 1 or table.shape[0] == 0 or (size is not None and table.shape[0] != size):
            fail(op, argument, f"of shape [{'S' if size is None else size}]", list(table.shape))
        size = table.shape[0]
        on_device(op, argument, table, model.device)


def noise_source(
    op: str, model: Tensor, model_name: str, noise: object, key: object, step: object, needed: bool
) -> None:
    """Require at most one of `noise` and `key_B3` (one if `needed`), and a step that the counter holds."""
    if noise is not None and key is not None:
        fail(op, "noise", "None when key_B3 is given", "both")
    if needed and noise is None and key is None:
        fail(op, "noise", "given, or else key_B3", "neither")
    step = integer(op, "step", step)
    if not 0 <= step < philox.MAX_STEP:
        fail(op, "step", f"in [0, {philox.MAX_STEP})", step)
    if noise is not None:
        like(op, "noise", noise, model, model_name)
    if key is not None:
        key = tensor(op, "key_B3", key)
        if key.dtype != torch.int64:
            fail(op, "key_B3", "int64", dtype_name(key.dtype), TypeError)
        if key.shape != (model.shape[0], 3):
            fail(op, "key_B3", f"of shape [{model.shape[0]}, 3]", list(key.shape))
        on_device(op, "key_B3", key, model.device)


def check_values(op: str, t_B: Tensor, size: int, key_B3: Tensor | None = None) -> None:
    """Require t in [0, size), and keys that the Philox counter can hold. CPU tensors only."""
    for value in t_B.tolist():
        if not 0 <= value < size:
            fail(op, "t_B", f"in [0, {size})", value)
    if key_B3 is not None:
        for _, task, sample in key_B3.tolist():
            if not 0 <= task < philox.MAX_TASK:
                fail(op, "key_B3[:, 1] (task)", "in [0, 2**32)", task)
            if not 0 <= sample < philox.MAX_SAMPLE:
                fail(op, "key_B3[:, 2] (sample)", "in [0, 2**48)", sample)
