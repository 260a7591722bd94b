"""ErrorAuroc against the definition: every pair of a wrong and a right pixel."""

import math

import pytest
import torch

from dmtl.metrics import ErrorAuroc


def by_pairs(score, wrong) -> float:
    high, low = score[wrong][:, None], score[~wrong][None]
    return float(((high > low).double() + 0.5 * (high == low).double()).mean())


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("levels", [3, 1000])
def test_against_all_pairs(graded, levels):
    g = torch.Generator().manual_seed(levels)
    score = torch.randint(0, levels, (4, 12, 15), generator=g).float()
    error = torch.rand(4, 12, 15, generator=g) + 0.001 * score
    error = error if graded else (error > 0.6).float()
    valid = torch.rand(4, 12, 15, generator=g) > 0.2
    auroc = ErrorAuroc(graded)
    for part in (slice(0, 1), slice(1, 4)):
        auroc.update(score[part], error[part], valid[part])
    kept = error[valid]
    assert auroc.compute() == pytest.approx(by_pairs(score[valid], kept > (kept.median() if graded else 0)))


def test_the_ends_of_the_scale():
    error = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])
    for score, expected in ((error, 1.0), (-error, 0.0), (torch.zeros_like(error), 0.5)):
        auroc = ErrorAuroc(graded=False)
        auroc.update(score, error, torch.ones_like(error, dtype=torch.bool))
        assert auroc.compute() == expected
    assert math.isnan(ErrorAuroc(graded=True).compute())
    with pytest.raises(ValueError, match="must have the same shape"):
        auroc.update(error, error, error[0] > 0)


def test_large_images_are_thinned():
    auroc, shape = ErrorAuroc(graded=True), (1, 1000, 700)
    auroc.update(torch.rand(shape), torch.rand(shape), torch.ones(shape, dtype=torch.bool))
    assert 3000 < len(auroc._scores[0]) < 5000
