"""The noise: Random123's known answers, the same integers and normals on every backend, moments, independence
of everything."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import dmtl.ops
from dmtl.ops import philox

from .tools import DEVICE, backend_params

MAX = 0xFFFFFFFF
# Random123 1.14, kat_vectors: philox 4x32 10: counter, key, expected.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MAX, MAX, MAX, MAX), (MAX, MAX), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEYS = torch.tensor([[0, 0, 0], [1, 2, 3], [-5, 2**32 - 1, 2**48 - 1], [2**63 - 1, 7, 2**40]], device=DEVICE)


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest number of float32 values between corresponding entries."""
    ordered = [
        torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits).long()
        for bits in (a.view(torch.int32), b.view(torch.int32))
    ]
    return int((ordered[0] - ordered[1]).abs().max())


def plain_philox(counter: tuple, key: tuple) -> tuple:
    """Philox4x32-10 on Python integers, from the paper's description."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MAX, (p0 >> 32) ^ c[3] ^ k[1], p0 & MAX]
        k = [(k[0] + 0x9E3779B9) & MAX, (k[1] + 0xBB67AE85) & MAX]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = philox.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == expected == plain_philox(counter, key)


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    task=st.integers(0, 2**32 - 1),
    sample=st.integers(0, 2**48 - 1),
    step=st.integers(0, 2**16 - 1),
    element=st.integers(0, 40),
)
@settings(max_examples=100)
def test_counter_layout(seed, task, sample, step, element):
    """The documented layout, on Python integers."""
    words = philox.words(torch.tensor([[seed, task, sample]]), 41, step)
    counter = (element // 4, sample & MAX, task, step | (sample >> 32) << 16)
    assert int(words[0, element]) == plain_philox(counter, (seed & MAX, (seed >> 32) & MAX))[element % 4]


def test_normals_follow_the_definition():
    """Box-Muller in double precision, written out for single elements."""
    words = philox.words(KEYS, 64, 9).tolist()
    normals = philox.normal(KEYS, (64,), 9)
    for row, row_words in enumerate(words):
        for pair in range(32):
            w0, w1 = row_words[2 * pair], row_words[2 * pair + 1]
            r = math.sqrt(-2 * math.log(w0 / 2**32 + 2.0**-33))
            for j, expected in enumerate(
                (r * math.cos(2 * math.pi * w1 / 2**32), r * math.sin(2 * math.pi * w1 / 2**32))
            ):
                assert float(normals[row, 2 * pair + j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
def test_backends_draw_the_same_noise(backend):
    """Within 2 ulp of the reference everywhere: one wrong bit of one word would be far off."""
    count = 1 << 14
    expected = philox.normal(KEYS, (count,), 4)
    with dmtl.ops.use_backend(backend):
        assert ulp_distance(dmtl.ops.normal(KEYS, (count,), 4), expected) <= 2


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_triton_words_are_bit_equal(backend):
    """The integers themselves, out of the Triton device function."""
    from .triton_words import write_words

    for seed, task, sample in KEYS.tolist():
        out = torch.empty(4096, dtype=torch.int64, device=DEVICE)
        c3 = 11 | (sample >> 32) << 16
        write_words[(1,)](out, seed & MAX, (seed >> 32) & MAX, sample & MAX, task, c3, BLOCK=1024)
        assert torch.equal(out, philox.words(torch.tensor([[seed, task, sample]]), 4096, 11)[0].to(DEVICE))


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_native_words_are_bit_equal(backend):
    """The integers themselves, out of the C++ header that the CPU and the CUDA kernels share."""
    from dmtl.runtime import native

    for seed, task, sample in KEYS.tolist():
        words = native.core().philox_words([seed, task, sample], 11, 4096)
        assert words == philox.words(torch.tensor([[seed, task, sample]]), 4096, 11)[0].tolist()


@pytest.mark.parametrize("backend", backend_params("reference", "cpu"))
def test_independent_of_batch_layout_and_dtype(backend):
    shape = (6, 4, 10)
    with dmtl.ops.use_backend(backend):
        whole = dmtl.ops.normal(KEYS, shape, 2)
        alone = torch.cat([dmtl.ops.normal(key.unsqueeze(0), shape, 2) for key in KEYS])
        assert torch.equal(whole, alone)
        assert torch.equal(dmtl.ops.normal(KEYS, (4, 10, 6), 2).flatten(1), whole.flatten(1))
        assert torch.equal(dmtl.ops.normal(KEYS, shape, 2, torch.bfloat16), whole.bfloat16())
        zero = torch.zeros(len(KEYS), *shape, device=DEVICE).to(memory_format=torch.channels_last)
        t_B, one = torch.zeros(len(KEYS), dtype=torch.int64, device=DEVICE), torch.ones(1, device=DEVICE)
        last = dmtl.ops.q_sample(zero, t_B, 0 * one, one, key_B3=KEYS, step=2)
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(last, whole)


def test_every_part_of_the_key_matters():
    base = [5, 6, 7]
    draws = {}
    for name, key, step in [
        ("base", base, 0),
        ("step", base, 1),
        ("seed", [6, 6, 7], 0),
        ("seed, high word", [5 + 2**32, 6, 7], 0),
        ("task", [5, 7, 7], 0),
        ("sample", [5, 6, 8], 0),
        ("sample, high word", [5, 6, 7 + 2**32], 0),
    ]:
        draws[name] = philox.words(torch.tensor([key]), 4096, step)[0]
    names = list(draws)
    for i, first in enumerate(names):
        for second in names[:i]:
            # 4096 pairs of random words agree somewhere with probability 1e-6.
            assert not (draws[first] == draws[second]).any(), (first, second)


def test_moments_and_distribution():
    """Reliability promise P3: moments of 2**24 normals, and Kolmogorov-Smirnov on a part."""
    keys = torch.tensor([[2024, task, sample] for task in range(2) for sample in range(8)])
    x = dmtl.ops.normal(keys, (1 << 20,), 0).double()
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.var()) - 1) < 1e-3
    assert abs(float((x**4).mean() / x.var() ** 2) - 3) < 5e-3
    assert stats.kstest(x[0, : 1 << 17].numpy(), "norm").pvalue > 1e-3
    correlations = torch.corrcoef(x[:, : 1 << 16]).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 6 / 2**8
