"""Compute decode_map with the CUDA kernels in kernels/cuda/decode_map.cu."""

from functools import partial

from dmtl.kernels import decode_map as shared
from dmtl.kernels.native import CUDA

SUPPORT = CUDA.support()

decode_map = partial(shared.decode_map, CUDA)
