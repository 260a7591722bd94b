"""Compute upsample_add and its backward with the CUDA kernels in kernels/cuda/upsample_add.cu."""

from functools import partial

from dmtl.kernels import grid
from dmtl.kernels.native import CUDA
from dmtl.kernels.tokens import why_not_sizes

SUPPORT = CUDA.support(
    shapes=lambda tokens, skip, reduction: why_not_sizes(C=skip.shape[1]),
    backward_shapes=lambda grad, reduction: why_not_sizes(C=grad.shape[1]),
)

upsample_add = partial(grid.upsample_add, CUDA)
upsample_add_backward = partial(grid.upsample_add_backward, CUDA)
