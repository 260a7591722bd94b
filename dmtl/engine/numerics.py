"""Choose how a network computes on a device: dtypes, tasks together or apart, transformed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmtl import ops
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.nn.precision import DTYPES
from dmtl.runtime.measure import Fastest, warm_seconds

PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("bf16", "fp16", "tf32", "fp32")}
"""Type of device -> supported precisions, the default first."""

_PACKED_BYTES = 256 << 20  # keep transformed weights up to this size; otherwise transform them in every call
_PROBE = 256  # tokens on which dtypes are compared: those of a 512x512 image at 1/32


@dataclass(frozen=True)
class Form:
    """How a network computes.

    Attributes:
        maps: dtype of maps.
        tokens: dtype of the cross blocks.
        apart: process the maps of tasks one after another, not in one packed tensor: this needs less memory,
            and each map fits into a CPU's cache.
        pack: keep convolution weights transformed for their backend, with Winograd in four times the memory.
        fused: compute inverted residuals of the encoder with `ops.inverted_residual`.
    """

    maps: torch.dtype = torch.float32
    tokens: torch.dtype = torch.float32
    apart: bool = True
    pack: bool = False
    fused: bool = False


def choose_form(model: DiffusionMTL | MultiTaskBaseline, device: torch.device, precision: str) -> Form:
    """Choose the form that suits the device.

    On a CPU, maps stay float32: in bfloat16, they changed the depth error of the built-in model by 1.3 % and
    its mIoU by 0.3 %. Tokens in bfloat16 changed no main metric by more than 0.01 %. With precision "bf16"
    they use bfloat16 if that is faster, as measured on a layer of this model's width.
    """
    dtype = DTYPES[precision]
    if device.type != "cpu":
        return Form(dtype, dtype, apart=False, pack=True)
    convolutions = sum(p.numel() for p in model.parameters() if p.dim() == 4 and p.shape[-1] == 3)
    pack = 4 * 4 * convolutions <= _PACKED_BYTES
    return Form(torch.float32, _faster_tokens(model.config.width, dtype), apart=True, pack=pack, fused=True)


def _faster_tokens(width: int, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` if it was measured to be faster than float32, else float32; measure once per kind."""
    if dtype == torch.float32:
        return dtype
    ways = {"fp32": _mlp(width, torch.float32), "lower": _mlp(width, dtype)}
    chosen = _fastest.choose(("token_mlp", width, dtype, torch.get_num_threads()), ways, torch.device("cpu"))
    return dtype if chosen == "lower" else torch.float32


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of several rounds, after a warm-up (page faults, processor clock)."""
    return min(warm_seconds(call, device) for _ in range(3))


def _mlp(width: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    x, one = torch.ones(1, _PROBE, width, dtype=dtype), torch.ones(width, dtype=dtype)
    into, out = torch.ones(4 * width, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    return lambda: ops.token_mlp(x, one, one, into, into[:, 0].contiguous(), out, one)


_fastest = Fastest(_least_seconds)
