"""The noise as random numbers: 2**24 draws of many streams, and no two streams with a word in common.

A stream is (seed, task, sample, step). The draws are fixed, so these tests give the same answer every time;
bounds are five standard errors, or p-values of 1e-3, of truly random numbers. `test_philox.py` ties every
backend to these integers, and holds the promised bounds on the first moments.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import dmtl.ops
from dmtl.ops import philox

pytestmark = pytest.mark.slow  # `make test` has the known answers and bounds of test_philox.py

# Neighbouring values, values that differ in one high bit, and the ends of the ranges.
SEEDS = (0, 1, 2**32, -1)
TASKS = (0, 1, 2**31, 2**32 - 1)
SAMPLES = (0, 1, 2**32, 2**48 - 1)
STEPS = (0, 1, 2**15, 2**16 - 1)
STREAMS = list(itertools.product(SEEDS, TASKS, SAMPLES, STEPS))
PER_STREAM = 1 << 16
DRAWS = len(STREAMS) * PER_STREAM
assert DRAWS == 1 << 24


def every_stream(draw) -> torch.Tensor:
    """draw(key_B3, step) -> [B, PER_STREAM] for all streams: [256, PER_STREAM]."""
    keys = torch.tensor(list(itertools.product(SEEDS, TASKS, SAMPLES)))
    return torch.cat([draw(keys, step) for step in STEPS])


@pytest.fixture(scope="module")
def normals() -> torch.Tensor:
    """float64 [256 streams, PER_STREAM], by the backend that this machine chooses."""
    return every_stream(lambda keys, step: dmtl.ops.normal(keys, (PER_STREAM,), step)).double()


@pytest.fixture(scope="module")
def words() -> torch.Tensor:
    """uint32 words as int64 [256 streams, PER_STREAM]."""
    return every_stream(lambda keys, step: philox.words(keys, PER_STREAM, step))


# The variance of the sample mean of z**k is (E z**2k - (E z**k)**2) / n.
MOMENTS = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 5: (0, 945), 6: (15, 10170)}


@pytest.mark.parametrize("power", MOMENTS)
def test_moments(normals, power):
    """Of all draws together, and of every stream by itself (whose deviations must be normal too)."""
    true, variance = MOMENTS[power]
    values = normals**power
    assert abs(float(values.mean()) - true) < 5 * (variance / DRAWS) ** 0.5
    deviations = (values.mean(1) - true) / (variance / PER_STREAM) ** 0.5
    assert float(deviations.abs().max()) < 5
    assert 0.7 < float(deviations.square().mean()) < 1.3


def test_kolmogorov_smirnov(normals):
    assert stats.kstest(normals.flatten().numpy(), "norm", method="asymp").pvalue > 1e-3


def test_kolmogorov_smirnov_of_streams(normals):
    """Every stream follows the normal distribution, and the 256
    p-values the uniform one: not too well either."""
    pvalues = [stats.kstest(stream, "norm", method="asymp").pvalue for stream in normals.numpy()]
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


def test_tails(normals):
    """As many draws beyond 2, 3, 4 and 5 standard deviations as there should be, none beyond the largest."""
    for bound in (2, 3, 4, 5):
        expected = DRAWS * 2 * stats.norm.sf(bound)
        assert abs(int((normals.abs() > bound).sum()) - expected) < 5 * expected**0.5, bound
    assert float(normals.abs().max()) <= 6.77


def test_streams_do_not_correlate(normals):
    """All 32,640 pairs of streams, and their squares (whose mean is 1, variance 2)."""
    for values in (normals, (normals**2 - 1) / 2**0.5):
        correlations = (values @ values.T / PER_STREAM).fill_diagonal_(0)
        assert float(correlations.abs().max()) < 6 / PER_STREAM**0.5
        assert 0.9 < float(correlations.square().sum() / (256 * 255)) * PER_STREAM < 1.1


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 64, 4096])
def test_elements_do_not_correlate(normals, lag):
    """Neither a pair of Box-Muller, nor the two pairs of a block, nor neighbouring blocks."""
    first, second = normals[:, :-lag], normals[:, lag:]
    for a, b in ((first, second), (first**2 - 1, second**2 - 1), (first, second**2 - 1)):
        variance = float((a**2).mean() * (b**2).mean())
        assert abs(float((a * b).mean())) < 5 * (variance / first.numel()) ** 0.5
    # By position in the block, as a fault of one of its words would show.
    if lag < 4:
        by_position = (first * second)[:, : PER_STREAM - 4].unflatten(1, (-1, 4)).mean((0, 1))
        assert float(by_position.abs().max()) < 5 / (first.numel() / 4) ** 0.5


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_pairs_fill_the_plane(normals, distance):
    """Chi-square over 32 x 32 equally likely cells of (element, element + distance)."""
    edges = torch.tensor(stats.norm.ppf(np.arange(1, 32) / 32))
    cell = torch.bucketize(normals, edges)
    pairs = cell[:, :-distance] * 32 + cell[:, distance:]
    counts = torch.bincount(pairs.flatten(), minlength=1024)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_bits_and_bytes_of_words(words):
    """Every bit of a word is set half the time; every byte takes its 256 values equally often."""
    octets = words.numpy().astype("<u4").reshape(-1, 1).view(np.uint8)
    for byte in range(4):
        counts = np.bincount(octets[:, byte], minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3, byte
        for bit in range(8):
            ones = counts[(np.arange(256) >> bit) & 1 == 1].sum() / DRAWS
            assert abs(ones - 0.5) < 5 * 0.5 / DRAWS**0.5, (byte, bit)


def test_no_two_blocks_are_alike(words):
    """2**22 blocks of all streams: each half of a block (64 bits) is
    there once. (By chance: once in 2**21.)"""
    for half in (words[:, 0::4] << 32 | words[:, 1::4], words[:, 2::4] << 32 | words[:, 3::4]):
        assert half.unique().numel() == DRAWS // 4


def test_streams_share_no_words(words):
    """At the same element, two of the 256 streams have the same word as often as chance (2**-32) has it."""
    ordered = words.sort(0).values
    agreements = int((ordered[1:] == ordered[:-1]).sum())
    expected = PER_STREAM * 256 * 255 / 2 / 2**32  # about a half
    assert agreements <= expected + 5 * expected**0.5


STREAM = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, philox.MAX_TASK - 1),
    st.integers(0, philox.MAX_SAMPLE - 1),
    st.integers(0, philox.MAX_STEP - 1),
    st.integers(0, philox.MAX_ELEMENTS // 4 - 1),
)


def inputs_of(stream) -> tuple[int, ...]:
    """Counter and key that the generator gets for one block, caught on their way."""
    seed, task, sample, step, block = stream
    caught = []

    def watched(counter, key, rounds=10):
        caught.extend(
            int(word.flatten()[-1]) for word in (*counter[1:], *key) if isinstance(word, torch.Tensor)
        )
        return original(counter, key, rounds)

    original, philox.philox4x32 = philox.philox4x32, watched
    try:
        philox.words(torch.tensor([[seed, task, sample]]), 4, step)
    finally:
        philox.philox4x32 = original
    return (block, *caught)


@given(first=STREAM, second=STREAM, kept=st.sets(st.integers(0, 4), max_size=4))
@settings(max_examples=300)
def test_distinct_streams_have_distinct_counters(first, second, kept):
    """Philox is a bijection of its counter for every key, so distinct (key, counter) is all that independence
    needs; parts of the second stream are often those of the first."""
    second = tuple(a if i in kept else b for i, (a, b) in enumerate(zip(first, second, strict=True)))
    assert (inputs_of(first) == inputs_of(second)) == (first == second)
