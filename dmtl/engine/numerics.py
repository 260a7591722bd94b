"""How a network computes on a device: dtypes, tasks together or apart, transformed weights."""

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
"""Device -> supported precisions, the default first."""

_PACKED_BYTES = 256 << 20  # of transformed weights to keep; beyond, they are transformed in every call
_PROBE = 64  # rows and columns of the map that dtypes are compared on: an image of 512x512


@dataclass(frozen=True)
class Form:
    """How a network computes.

    maps: dtype of everything with pixels. tokens: dtype of the cross blocks. apart: process tasks' maps one
    after another instead of in one packed tensor: less memory, and a CPU keeps each in its cache. pack: keep
    convolution weights transformed for their backend (four times their memory with Winograd). fused: compute
    inverted residuals of the encoder by `ops.inverted_residual`.
    """

    maps: torch.dtype = torch.float32
    tokens: torch.dtype = torch.float32
    apart: bool = True
    pack: bool = False
    fused: bool = False


def choose_form(model: DiffusionMTL | MultiTaskBaseline, device: torch.device, precision: str) -> Form:
    """Choose the form that suits the device. On a CPU in bf16, maps and tokens each use the dtype whose
    kernels were measured to be faster, on layers of this model's width. Not both are lowered: that errs by up
    to 2.3e-2 on the published network, either alone by at most 1.6e-2."""
    dtype = DTYPES[precision]
    if device.type != "cpu":
        return Form(dtype, dtype, apart=False, pack=True)
    convolutions = sum(p.numel() for p in model.parameters() if p.dim() == 4 and p.shape[-1] == 3)
    pack = 4 * 4 * convolutions <= _PACKED_BYTES
    width, maps, tokens = model.config.width, dtype, dtype
    if dtype != torch.float32:
        maps = _faster(("conv3x3", width, pack), lambda dtype: _convolution(width, dtype, pack), dtype)
        tokens = torch.float32
        if maps == torch.float32:
            tokens = _faster(("token_mlp", width), lambda dtype: _mlp(width, dtype), dtype)
    # Where bfloat16 is faster, the library's convolutions have instructions for it that the operator lacks.
    return Form(maps, tokens, apart=True, pack=pack, fused=maps == torch.float32)


def _faster(
    kind: tuple, way: Callable[[torch.dtype], Callable[[], Tensor]], dtype: torch.dtype
) -> torch.dtype:
    """Return float32, or dtype if that was measured to be faster; measured once per kind."""
    ways = {"fp32": way(torch.float32), "lower": way(dtype)}
    chosen = _fastest.choose((*kind, dtype, torch.get_num_threads()), ways, torch.device("cpu"))
    return dtype if chosen == "lower" else torch.float32


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the least of several rounds, after warm-up (page faults, processor clock)."""
    return min(warm_seconds(call, device) for _ in range(3))


def _convolution(width: int, dtype: torch.dtype, pack: bool) -> Callable[[], Tensor]:
    x = torch.ones(1, width, _PROBE, _PROBE, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(width, width, 3, 3, dtype=dtype)
    packed = [ops.pack_conv3x3(weight)] if pack else None
    return lambda: ops.conv3x3(x, [weight], None, [1], relu=True, packed=packed)


def _mlp(width: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    x, one = torch.ones(1, (_PROBE // 4) ** 2, width, dtype=dtype), torch.ones(width, dtype=dtype)
    into, out = torch.ones(4 * width, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    return lambda: ops.token_mlp(x, one, one, into, into[:, 0].contiguous(), out, one)


_fastest = Fastest(_least_seconds)
