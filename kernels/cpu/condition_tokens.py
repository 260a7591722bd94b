"""Compute condition_tokens and its backward with the C++ kernels in csrc/cpu/condition_tokens.cpp."""

from __future__ import annotations

from functools import partial

from dmtl.kernels import condition_tokens as shared
from dmtl.kernels.native import CPU

SUPPORT = CPU.support(shapes=shared.shapes, backward_shapes=shared.backward_shapes)

condition_tokens = partial(shared.forward, CPU)
condition_tokens_backward = partial(shared.native_backward, CPU)
