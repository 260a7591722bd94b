"""The boundary metric on a frame of 512x512: thinning and exact matching at every threshold.

The baseline uses only libraries: thinning by table look-ups in NumPy, and matching by scipy's exact
assignment of a sparse matrix, separately at every threshold (the metric's fallback without its native core).
It takes minutes for 101 thresholds, so rows that compare contenders use 11. Maps are noise, or boundaries of
random segments as networks predict them: soft, noisy and displaced, with false ones nearby.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmtl.metrics import Boundary
from dmtl.metrics.matching import BOUNDARY, boundary_counts
from dmtl.metrics.morphology import outline
from dmtl.runtime import native

SIDE = 512
REACH = 0.0075 * 2**0.5


def smooth(shape: tuple[int, ...], cell: int, generator: torch.Generator) -> torch.Tensor:
    """Return random fields [.., H, W] that vary over `cell` pixels."""
    *_, h, w = shape
    coarse = torch.randn(1, *shape[:-2], -(-h // cell) + 3, -(-w // cell) + 3, generator=generator)
    coarse = coarse if coarse.ndim == 4 else coarse[None]
    return F.interpolate(coarse, shape[-2:], mode="bicubic")[0].reshape(shape)


def frame(kind: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return map and truth, [H, W]."""
    generator = torch.Generator().manual_seed(0)
    segments = smooth((6, side, side), side // 8, generator).argmax(0)
    truth = outline(segments.numpy())
    if kind == "noise":
        return torch.rand(side, side, generator=generator).numpy(), truth
    false = outline(smooth((4, side, side), side // 16, generator).argmax(0).numpy())
    lines = np.roll(truth, (1, -1), (0, 1)) + 0.5 * false
    blurred = F.avg_pool2d(torch.from_numpy(lines)[None, None].float(), 5, 1, 2)[0, 0]
    logit = 9 * blurred * (1 + 0.4 * smooth((side, side), 24, generator)) - 3
    return torch.sigmoid(logit + smooth((side, side), 3, generator)).numpy(), truth


@functools.cache
def problem(kind: str, side: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the arguments of `boundary_counts` for one image."""
    map_HW, truth_HW = frame(kind, side)
    level_HW = (map_HW * (levels + 1)).clip(0, levels).astype(np.uint8)
    return level_HW[None], (truth_HW * BOUNDARY).astype(np.uint8)[None]


def counts(contender: str, kind: str, side: int, levels: int) -> tuple[np.ndarray, ...]:
    with pytest.MonkeyPatch.context() as patch:
        if contender == "scipy":
            patch.setattr(native, "core", lambda: None)
        return boundary_counts(*problem(kind, side, levels), levels, REACH * side)


@functools.cache
def verified(kind: str) -> bool:
    """Check that the contenders agree on every count of a smaller frame before timing."""
    found = [counts(contender, kind, 128, 11) for contender in ("dmtl", "scipy")]
    assert found[0][0].max() > 50
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    return True


@pytest.mark.parametrize("kind", ["network", "noise"])
@pytest.mark.parametrize(("contender", "levels"), [("dmtl", 101), ("dmtl", 11), ("scipy", 11)])
def test_counts(benchmark, contender, levels, kind):
    if contender == "dmtl" and native.core() is None:
        pytest.skip(native.why_no_core()[0])
    assert verified(kind)
    benchmark.group = f"boundary counts {kind} {levels} thresholds"
    call = functools.partial(counts, contender, kind, SIDE, levels)
    matched, predicted, actual = benchmark.pedantic(call, rounds=1 if contender == "scipy" else 9)
    benchmark.extra_info.update(contender=contender, threads=torch.get_num_threads(), pixels=SIDE * SIDE,
                                most_pairs=int(matched.max()), most_predicted=int(predicted.max()),
                                actual=int(actual[0]))  # fmt: skip


@pytest.mark.parametrize("kind", ["network", "noise"])
@pytest.mark.parametrize("protocol", ["seism", "raw"])
def test_metric(benchmark, protocol, kind):
    """Time all of `update` on four images with all 101 thresholds."""
    if native.core() is None:
        pytest.skip(native.why_no_core()[0])
    assert verified(kind)
    map_HW, truth_HW = (torch.from_numpy(np.float32(x)) for x in frame(kind, SIDE))
    maps, labels = map_HW.repeat(4, 1, 1), truth_HW.repeat(4, 1, 1, 1).transpose(0, 1)
    labels = labels.reshape(4, 1, SIDE, SIDE)
    metric = Boundary(protocol)
    benchmark.group = f"boundary metric {kind}"
    benchmark.pedantic(metric.update, (maps, labels), rounds=5, warmup_rounds=1)
    rate = 4 / benchmark.stats.stats.median if not benchmark.disabled else None
    benchmark.extra_info.update(images_per_s=rate, threads=torch.get_num_threads(), **metric.compute())
