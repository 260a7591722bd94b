"""Measure how well uncertainty predicts errors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_PIXELS = 4096  # pixels sampled from each image, on a regular grid


class ErrorAuroc:
    """Area under the ROC curve (AUROC) of a score that should separate wrong pixels from right ones.

    It is the probability that a wrong pixel has a larger score than a right one (ties count half). 0.5 is
    chance. About 4,096 pixels of each image are kept, on a regular grid.

        auroc = ErrorAuroc(graded=False)
        for ...: auroc.update(uncertainty_BHW, error_BHW, valid_BHW)
        auroc.compute()

    Args:
        graded: True: errors are amounts, and a pixel is wrong if its error is above the median of all pixels.
            False: a pixel is wrong if its error is not 0.
    """

    def __init__(self, graded: bool):
        self.graded = graded
        self._scores: list[Tensor] = []
        self._errors: list[Tensor] = []

    def update(self, score_BHW: Tensor, error_BHW: Tensor, valid_BHW: Tensor) -> None:
        """Add a batch of scores, errors and (bool) valid pixels; raise ValueError if the shapes differ."""
        if not score_BHW.shape == error_BHW.shape == valid_BHW.shape:
            shapes = ", ".join(str(list(x.shape)) for x in (score_BHW, error_BHW, valid_BHW))
            raise ValueError(
                f"ErrorAuroc.update: score, error and valid must have the same shape, got {shapes}"
            )
        step = max(1, math.ceil(math.sqrt(score_BHW[0].numel() / _PIXELS))) if len(score_BHW) else 1
        grid = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
        kept = valid_BHW[grid].cpu()
        self._scores.append(score_BHW[grid].float().cpu()[kept])
        self._errors.append(error_BHW[grid].float().cpu()[kept])

    def state(self) -> dict[str, Tensor]:
        """Return the sampled pixels: "scores" and "errors", float32 [n] each."""
        return {"scores": _joined(self._scores), "errors": _joined(self._errors)}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Append the pixels in the state of another ErrorAuroc."""
        self._scores.append(state["scores"].cpu())
        self._errors.append(state["errors"].cpu())

    def compute(self) -> float:
        """Return the area; NaN if all pixels are right or all wrong."""
        scores, errors = _joined(self._scores), _joined(self._errors)
        if not len(scores):
            return math.nan
        wrong = errors > (errors.median() if self.graded else 0)
        _, place, counts = scores.unique(return_inverse=True, return_counts=True)
        rank = (counts.cumsum(0).double() - (counts - 1) / 2)[place]  # from 1; ties get their mean rank
        positive, negative = int(wrong.sum()), int((~wrong).sum())
        if not positive or not negative:
            return math.nan
        return float((rank[wrong].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0)
