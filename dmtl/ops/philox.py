"""Draw the noise of dmtl: a pure function of (seed, task, sample, step, element), the same on every backend.

Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). This
docstring is the one place that fixes the layout; `csrc/include/dmtl/philox.h` and `kernels/triton/_noise.py`
implement it.

A row of `key_B3` is (seed, task, sample), int64: seed any value, 0 <= task < 2**32, 0 <= sample < 2**48. With
0 <= step < 2**16 and `element` the flat index inside one sample in logical (row-major) order,
0 <= element < 2**34:

    key        k0 = seed mod 2**32          k1 = (seed >> 32) mod 2**32
    counter    c0 = element // 4
               c1 = sample mod 2**32
               c2 = task
               c3 = step | (sample >> 32) << 16

Distinct (task, sample, step, element // 4) give distinct counters, so no two of them share random numbers,
and nothing else enters: neither memory layout, batch split, thread count, dtype nor device.

The four words w0..w3 of a block become the normals of elements 4i .. 4i + 3 (Box-Muller, two pairs):

    u = float32(w0) * 2**-32 + 2**-33       (both roundings to nearest; 2**-33 <= u <= 1)
    r = sqrt(-2 ln u)                       (at most 6.77)
    a = w1 * 2**-32 turns, its distance from the nearest multiple of a quarter turn rounded to float32
    n0 = r cos(2 pi a)    n1 = r sin(2 pi a)    n2, n3 the same from w2, w3

Normals are float32 by definition, whatever the dtype of the op. The reference evaluates them in float64 and
rounds once; the other backends evaluate polynomials in float32 and stay within 2 ulp of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
MAX_TASK, MAX_SAMPLE, MAX_STEP, MAX_ELEMENTS = 2**32, 2**48, 2**16, 2**34
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor], rounds: int = 10) -> Words:
    """Compute Philox4x32 on int64 tensors that hold 32-bit words, broadcast; return four tensors of words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The int64 product wraps, but its 64 bits are those of the unsigned product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & MASK32, (k1 + _WEYL[1]) & MASK32
    return c0, c1, c2, c3


def words(key_B3: Tensor, count: int, step: int = 0) -> Tensor:
    """Return the words of the first `count` elements of every row: int64 [B, count], values in [0, 2**32)."""
    seed, task, sample = (column.unsqueeze(1) for column in key_B3.unbind(1))
    block = torch.arange((count + 3) // 4, dtype=torch.int64, device=key_B3.device).unsqueeze(0)
    counter = (block, sample & MASK32, task & MASK32, step | ((sample >> 32) & 0xFFFF) << 16)
    out = philox4x32(counter, (seed & MASK32, (seed >> 32) & MASK32))
    return torch.stack(out, dim=-1).flatten(1)[:, :count]


def box_muller(words_BN: Tensor) -> Tensor:
    """Return normals, float32 [B, N], from int64 words [B, N] with N divisible by four (module docstring)."""
    even, odd = words_BN[:, 0::2], words_BN[:, 1::2]
    u = even.to(torch.float32) * 2.0**-32 + 2.0**-33
    r = (-2.0 * u.double().log()).sqrt()
    quadrant = ((odd + 2**29) >> 30) & 3
    # Signed distance from the multiple of a quarter turn, in 2**-32 turns.
    rest = ((odd + 2**29) & (2**30 - 1)) - 2**29
    angle = rest.to(torch.float32).double() * (2.0**-32 * 2.0 * math.pi)
    sin, cos = angle.sin(), angle.cos()
    swap = (quadrant & 1).bool()
    c = torch.where(swap, sin, cos) * (1 - 2 * ((quadrant + 1) >> 1 & 1))
    s = torch.where(swap, cos, sin) * (1 - 2 * (quadrant >> 1))
    return torch.stack((r * c, r * s), dim=-1).flatten(1).to(torch.float32)


def normal(key_B3: Tensor, shape: tuple[int, ...], step: int = 0) -> Tensor:
    """Return the reference noise, float32 [B, *shape], contiguous."""
    count = math.prod(shape)
    padded = (count + 3) // 4 * 4
    return box_muller(words(key_B3, padded, step))[:, :count].reshape(key_B3.shape[0], *shape)
