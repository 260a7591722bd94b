"""Boundaries: F of pixels, and the losses that stand in for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.metrics.base import ratio, zeros
from dmtl.metrics.maxf import PixelF


class Edge(PixelF):
    """`pixelF` (percent, see `PixelF`), `loss` (published) and `bce`.

    With y the label, p the probability, b = `balance`, over valid pixels:

        bce  = mean_pixels -(b y log p + (1 - b) (1 - y) log(1 - p))
        loss = mean_batches mean_pixels b y softplus(-p) + (1 - b) (1 - y) softplus(p)

    `loss` is the published figure, in which the probability is taken for a logit. It is a mean over `update`
    calls of the mean of each, so it depends on how data were batched: compare it between equal batches only.
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
        map_BHW = map_BHW.double()  # so that how the pixels fall into batches leaves no trace in the sums
        positive_BHW = label_BKHW[:, 0] > 0.5
        weight_BHW = (1 - self.balance) + (2 * self.balance - 1) * positive_BHW.double()
        sign_BHW = 1 - 2 * positive_BHW.double()
        probability_BHW = map_BHW.clamp(1e-7, 1 - 1e-7)  # a decoded map has rounded to 0 or 1 beyond this
        bce_BHW = -torch.where(positive_BHW, probability_BHW.log(), torch.log1p(-probability_BHW))
        bce = torch.where(valid_BHW, weight_BHW * bce_BHW, 0).sum()
        loss = torch.where(valid_BHW, weight_BHW * F.softplus(sign_BHW * map_BHW), 0).sum()
        pixels = valid_BHW.sum()
        self._add(bce=bce, pixels=pixels, loss=loss / pixels.clamp(min=1), batches=(pixels > 0).long())

    def compute(self) -> dict[str, float]:
        s = {k: self._sums[k].item() for k in ("bce", "pixels", "loss", "batches")}
        losses = {"loss": ratio(s["loss"], s["batches"]), "bce": ratio(s["bce"], s["pixels"])}
        return super().compute() | losses
