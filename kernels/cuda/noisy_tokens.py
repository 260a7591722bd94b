"""Compute noisy_tokens and its backward with the CUDA kernels in kernels/cuda/noisy_tokens.cu."""

from functools import partial

from dmtl.kernels import grid
from dmtl.kernels.native import CUDA
from dmtl.kernels.tokens import why_not_sizes

SUPPORT = CUDA.support(
    shapes=lambda x, bias, reduction: why_not_sizes(C=x.shape[1]),
    backward_shapes=lambda grad_skip, *_: why_not_sizes(C=grad_skip.shape[1]),
)
_PIXELS_PER_PART = 128

noisy_tokens = partial(grid.noisy_tokens, CUDA)
noisy_tokens_backward = partial(
    grid.noisy_tokens_backward, CUDA, lambda grad_skip, reduction: _PIXELS_PER_PART // reduction**2
)
