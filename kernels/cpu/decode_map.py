"""Compute decode_map with the C++ kernels in csrc/cpu/decode_map.cpp."""

from functools import partial

from dmtl.kernels import decode_map as shared
from dmtl.kernels.native import CPU

SUPPORT = CPU.support()

decode_map = partial(shared.decode_map, CPU)
