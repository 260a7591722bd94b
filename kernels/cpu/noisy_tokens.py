"""Compute noisy_tokens and its backward with the C++ kernels in csrc/cpu/noisy_tokens.cpp."""

from functools import partial

from dmtl.kernels import grid
from dmtl.kernels.native import CPU

SUPPORT = CPU.support()

noisy_tokens = partial(grid.noisy_tokens, CPU)
# A partial sum of d_bias covers one line of tokens.
noisy_tokens_backward = partial(
    grid.noisy_tokens_backward, CPU, lambda grad_skip, reduction: grad_skip.shape[3] // reduction
)
