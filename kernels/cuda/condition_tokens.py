"""Compute condition_tokens and its backward with the CUDA kernels in kernels/cuda/condition_tokens.cu."""

from __future__ import annotations

from functools import partial

from dmtl.kernels import condition_tokens as shared
from dmtl.kernels.native import CUDA

SUPPORT = CUDA.support(shapes=shared.shapes, backward_shapes=shared.backward_shapes)

condition_tokens = partial(shared.forward, CUDA)
condition_tokens_backward = partial(
    shared.library_backward,
    partial(shared.take, CUDA),
    partial(shared.put, CUDA),
    shared.library_norm_backward,
)
