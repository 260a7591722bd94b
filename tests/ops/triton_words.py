"""A Triton kernel that stores the Philox words themselves, for the test of their bits."""

import triton
import triton.language as tl

from dmtl.kernels.triton._noise import _philox


@triton.jit
def write_words(out_ptr, k0, k1, c1, c2, c3, BLOCK: tl.constexpr):
    block = tl.arange(0, BLOCK)
    key0, key1 = k0.to(tl.uint32), k1.to(tl.uint32)
    w0, w1, w2, w3 = _philox(
        block.to(tl.uint32), key0, key1, c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32)
    )
    tl.store(out_ptr + 4 * block, w0.to(tl.int64))
    tl.store(out_ptr + 4 * block + 1, w1.to(tl.int64))
    tl.store(out_ptr + 4 * block + 2, w2.to(tl.int64))
    tl.store(out_ptr + 4 * block + 3, w3.to(tl.int64))
