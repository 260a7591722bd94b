"""Triton device functions for the noise that dmtl/ops/philox.py defines, with the arithmetic of
csrc/include/dmtl/philox.h."""

import triton
import triton.language as tl

from dmtl.kernels.triton._launch import INTERPRETED

_EMULATE_FMA = tl.constexpr(INTERPRETED)


@triton.jit
def _fma(a, b, c):
    """Return a b + c with one rounding.

    The interpreter lacks this operation, but float64 holds the product exactly.
    """
    if _EMULATE_FMA:
        return (a.to(tl.float64) * b + c).to(tl.float32)
    return tl.fma(a, b, c)


@triton.jit
def _philox(block, k0, k1, c1, c2, c3):
    """Return four words, uint32 like `block`, from one counter and key."""
    a = tl.full((), 0xD2511F53, tl.uint32)
    b = tl.full((), 0xCD9E8D57, tl.uint32)
    c0 = block
    c1 = c1 + tl.zeros_like(block)
    c2 = c2 + tl.zeros_like(block)
    c3 = c3 + tl.zeros_like(block)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, a + tl.zeros_like(c0))
        low0 = c0 * a
        high1 = tl.umulhi(c2, b + tl.zeros_like(c2))
        low1 = c2 * b
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _minus_two_log(u):
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = tl.full(f.shape, -0.07634497433900833, tl.float32)
    p = _fma(p, f, 0.1276157796382904)
    p = _fma(p, f, -0.13160182535648346)
    p = _fma(p, f, 0.14201757311820984)
    p = _fma(p, f, -0.16623356938362122)
    p = _fma(p, f, 0.20001226663589478)
    p = _fma(p, f, -0.2500081956386566)
    p = _fma(p, f, 0.3333333134651184)
    square = f * f
    low = _fma(exponent, -0.00021219444170128554, (f * square) * p)
    low = _fma(square, -0.5, low)
    return -2.0 * _fma(exponent, 0.693359375, f + low)


@triton.jit
def _box_muller(radius_word, angle_word):
    u = radius_word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    r = tl.sqrt_rn(_minus_two_log(u))
    shifted = angle_word + tl.full((), 0x20000000, tl.uint32)
    quadrant = (shifted >> 30).to(tl.int32)
    rest = (shifted & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    x = rest.to(tl.float32) * 2.3283064365386963e-10
    z = x * x
    s = _fma(z, -75.45339965820312, 81.59394073486328)
    s = _fma(s, z, -41.3416748046875)
    s = _fma(s, z, -1.7484555314695172e-07)
    s = _fma(x, 6.2831854820251465, x * s)
    c = _fma(z, 59.24596405029297, -85.44374084472656)
    c = _fma(c, z, 64.93932342529297)
    c = _fma(c, z, -19.739208221435547)
    c = _fma(c, z, 1.0)
    swap = (quadrant & 1) != 0
    cos = tl.where(swap, s, c) * (1 - ((quadrant + 1) & 2)).to(tl.float32)
    sin = tl.where(swap, c, s) * (1 - (quadrant & 2)).to(tl.float32)
    return r * cos, r * sin


@triton.jit
def draw_apart(block, seed, task, sample, step):
    """Return the normals of the first, second, third and fourth elements of the blocks [BLOCK] (uint32).

    seed, task and sample are int64 scalars.
    """
    c3 = step.to(tl.uint32) | ((sample >> 32).to(tl.uint32) & 0xFFFF) << 16
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = _philox(block, k0, k1, sample.to(tl.uint32), task.to(tl.uint32), c3)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def draw(block, seed, task, sample, step):
    """Return the normals [4 * BLOCK] of the elements of the blocks in order; see `draw_apart`."""
    n0, n1, n2, n3 = draw_apart(block, seed, task, sample, step)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (4 * block.shape[0],))
