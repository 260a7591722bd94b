"""Compute upsample_add and its backward with the C++ kernels in csrc/cpu/upsample_add.cpp."""

from functools import partial

from dmtl.kernels import grid
from dmtl.kernels.native import CPU

SUPPORT = CPU.support()

upsample_add = partial(grid.upsample_add, CPU)
upsample_add_backward = partial(grid.upsample_add_backward, CPU)
