"""decode_map by the CUDA kernels in kernels/cuda/decode_map.cu."""

from __future__ import annotations

from functools import partial

from dmtl.kernels import _decode_map as shared
from dmtl.kernels._native import CUDA

SUPPORT = CUDA.support()

decode_map = partial(shared.decode_map, CUDA)
