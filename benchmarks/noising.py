"""What the benchmarks of the two noising ops share: sizes, contenders, and the check that comes before any
timing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dmtl import ops
from dmtl.ops._registry import BACKENDS, OpSpec, reasons_against

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# One task's map of one 512x512 image, and of a batch of eight.
CASES = [("1x512x64x64", "float32"), ("1x512x64x64", "bfloat16"), ("8x512x64x64", "float32")]


def shape_of(size: str) -> tuple[int, ...]:
    return tuple(map(int, size.split("x")))


def usable(spec: OpSpec) -> list[str]:
    """Backends that are made for speed and run here."""
    probe = [torch.empty(0, device=DEVICE)]
    return [name for name in BACKENDS if name != "reference" and not reasons_against(spec, name, probe)]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, names: tuple[str, ...]) -> dict:
    """Random data under the given names, with t and keys per row."""
    torch.manual_seed(0)
    data = {name: torch.randn(shape, device=DEVICE).to(dtype) for name in names}
    t_B = torch.arange(shape[0], device=DEVICE) % 4
    key_B3 = torch.tensor([[1, 2, row] for row in range(shape[0])], device=DEVICE)
    return data | dict(t_B=t_B, key_B3=key_B3)


@functools.cache
def verified(spec: OpSpec, backend: str, dtype: torch.dtype) -> bool:
    """Refuse to time what is wrong: the backend against the reference on the op's own samples."""
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for sample in spec.samples("odd", dtype, DEVICE):
        with ops.use_backend("reference"):
            expected = spec.function(**sample)
        with ops.use_backend(backend):
            torch.testing.assert_close(spec.function(**sample), expected, rtol=tolerance, atol=tolerance)
    return True


def contenders(spec: OpSpec) -> list:
    """pytest parameters: every usable backend, then eager and compiled torch."""
    return [pytest.param(name, id=f"dmtl-{name}") for name in usable(spec)] + ["eager", "compiled"]


def prepared(
    spec: OpSpec, contender: str, eager: Callable[..., Tensor], call: dict, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """The timed callable. `eager` takes the same arguments and draws its noise with randn_like."""
    if contender == "eager":
        return functools.partial(eager, **call)
    if contender == "compiled":
        compiled = torch.compile(eager)
        compiled(**call)
        return functools.partial(compiled, **call)
    assert verified(spec, contender, dtype)

    def run() -> Tensor:
        with ops.use_backend(contender):
            return spec.function(**call)

    return run
