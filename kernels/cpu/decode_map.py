"""decode_map by the C++ kernel in csrc/cpu/decode_map.cpp."""

from __future__ import annotations

from functools import partial

from dmtl.kernels import _decode_map as shared
from dmtl.kernels._native import CPU

SUPPORT = CPU.support()

decode_map = partial(shared.decode_map, CPU)
