"""Compute the best F measure of probability maps over thresholds, from counts over the whole data set.

    F_beta = (1 + beta^2) P R / (beta^2 P + R) = (1 + beta^2) TP / (predicted + beta^2 actual)

A pixel is predicted positive if its score is at least the threshold. The counts at all thresholds come from
one histogram of scores for each label value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.metrics.base import Metric, histogram, ratio, zeros


class BestF(Metric):
    """Base class: counts for F at every threshold, for one or more scores of each pixel.

    Args:
        thresholds: T ascending values.
        scores: names of the scores; subclasses compute them in `_scores`.
        ignore: label value of pixels to skip.
        sums: further sums of a subclass, initially zero.
    """

    def __init__(self, thresholds: Tensor, scores: tuple[str, ...], *, ignore: float = 255.0, **sums: Tensor):
        bins = len(thresholds) + 1
        super().__init__(
            {name: zeros(2, bins, dtype=torch.int64) for name in scores} | sums,
            ignore=ignore,
            constants={"thresholds": thresholds.float()},
        )

    def _scores(self, map_BHW: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__}._scores")

    def _accumulate(self, map_BHW: Tensor, label_BKHW: Tensor, valid_BHW: Tensor) -> None:
        thresholds = self._constants["thresholds"]
        bins = len(thresholds) + 1
        positive_BHW = label_BKHW[:, 0] > 0.5
        for name, score_BHW in self._scores(map_BHW).items():
            score_BHW = torch.where(score_BHW.isnan(), -torch.inf, score_BHW)  # NaN reaches no threshold
            # The number of thresholds that the score reaches.
            reached_BHW = torch.bucketize(score_BHW.contiguous(), thresholds, right=True)
            index_BHW = torch.where(valid_BHW, positive_BHW * bins + reached_BHW, 2 * bins)
            self._add(**{name: histogram(index_BHW, 2 * bins + 1)[:-1].view(2, bins)})

    def _best(self, score: str, beta2: float) -> float:
        """Return the largest F over all thresholds, in percent."""
        counts_2T = self._sums[score].double().cpu()
        if counts_2T.sum() == 0:
            return float("nan")
        above_2T = counts_2T.flip(1).cumsum(1).flip(1)[:, 1:]  # [y, t]: pixels with score >= threshold t
        true_T, predicted_T, actual = above_2T[1], above_2T.sum(0), counts_2T[1].sum()
        f_T = (1 + beta2) * true_T / (predicted_T + beta2 * actual)
        return 100 * torch.nan_to_num(f_T, nan=0.0).max().item()


class MaxF(BestF):
    """Metric of saliency: the maximum of F with beta^2 = 0.3 over thresholds 0.05, 0.10 .. 0.95, in percent.

    `maxF` compares the probability itself with the thresholds. `maxF_paper` is the published variant, which
    first applies another sigmoid to the probability. That leaves only five distinct operating points (all
    pixels, and p >= 0.2007, 0.4055, 0.6190, 0.8473). Use it only to compare with published numbers.
    """

    beta2 = 0.3
    notes = {"maxF": "definition", "maxF_paper": "published: sigmoid twice"}

    def __init__(self, *, ignore: float = 255.0):
        super().__init__(torch.arange(1, 20, dtype=torch.float64) / 20, ("exact", "paper"), ignore=ignore)

    def _scores(self, map_BHW: Tensor) -> dict[str, Tensor]:
        return {"exact": map_BHW, "paper": map_BHW.sigmoid()}

    def compute(self) -> dict[str, float]:
        return {"maxF": self._best("exact", self.beta2), "maxF_paper": self._best("paper", self.beta2)}


class PixelF(BestF):
    """`pixelF`: the maximum of F with beta = 1 over thresholds 0.01 .. 0.99, pixel by pixel, in percent.

    There is no tolerance: a boundary that is displaced by one pixel is a miss. So pixelF is lower than odsF.
    """

    notes = {"pixelF": "no tolerance, not odsF"}

    def __init__(self, *, ignore: float = 255.0, **sums: Tensor):
        super().__init__(torch.arange(1, 100, dtype=torch.float64) / 100, ("score",), ignore=ignore, **sums)

    def _scores(self, map_BHW: Tensor) -> dict[str, Tensor]:
        return {"score": map_BHW}

    def compute(self) -> dict[str, float]:
        return {"pixelF": self._best("score", beta2=1.0)}


class Edge(PixelF):
    """`pixelF` (percent, see `PixelF`), `loss` (as published) and `bce`.

    With y the label, p the probability and b = `balance`, over valid pixels:

        bce  = mean_pixels -(b y log p + (1 - b) (1 - y) log(1 - p))
        loss = mean_batches mean_pixels b y softplus(-p) + (1 - b) (1 - y) softplus(p)

    `loss` is the published metric, which treats the probability as a logit. It is the mean over calls of
    `update` of the mean over pixels, so it depends on the batch size: only compare it for equal batch sizes.
    """

    notes = PixelF.notes | {"loss": "published: sigmoid twice", "bce": "definition"}

    def __init__(self, *, ignore: float = 255.0, balance: float = 0.95):
        self.balance = balance
        super().__init__(
            ignore=ignore,
            bce=zeros(),
            pixels=zeros(dtype=torch.int64),
            loss=zeros(),
            batches=zeros(dtype=torch.int64),
        )

    def _accumulate(self, map_BHW: Tensor, label_BKHW: Tensor, valid_BHW: Tensor) -> None:
        super()._accumulate(map_BHW, label_BKHW, valid_BHW)
        map_BHW = map_BHW.double()  # so that the sums do not depend on the batch size
        positive_BHW = label_BKHW[:, 0] > 0.5
        weight_BHW = (1 - self.balance) + (2 * self.balance - 1) * positive_BHW.double()
        sign_BHW = 1 - 2 * positive_BHW.double()
        probability_BHW = map_BHW.clamp(1e-7, 1 - 1e-7)  # beyond this, decoded maps round to 0 or 1
        bce_BHW = -torch.where(positive_BHW, probability_BHW.log(), torch.log1p(-probability_BHW))
        bce = torch.where(valid_BHW, weight_BHW * bce_BHW, 0).sum()
        loss = torch.where(valid_BHW, weight_BHW * F.softplus(sign_BHW * map_BHW), 0).sum()
        pixels = valid_BHW.sum()
        self._add(bce=bce, pixels=pixels, loss=loss / pixels.clamp(min=1), batches=(pixels > 0).long())

    def compute(self) -> dict[str, float]:
        s = {k: self._sums[k].item() for k in ("bce", "pixels", "loss", "batches")}
        losses = {"loss": ratio(s["loss"], s["batches"]), "bce": ratio(s["bce"], s["pixels"])}
        return super().compute() | losses
