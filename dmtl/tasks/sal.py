"""Saliency: does a pixel belong to what draws the eye. Cross-entropy balanced by frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmtl.metrics import MaxF
from dmtl.tasks.binary import Binary, weighted_bce


@dataclass(frozen=True, kw_only=True)
class Sal(Binary):
    """Salient or not.

    Published loss, with n+ and n- valid pixels of each class in the sample, n = n+ + n-:

        L = 1/n sum_i w(y_i) CE_i,     w(1) = n- / n,  w(0) = n+ / n

    Divided by the number of pixels, not by the sum of weights. A sample that shows one class only has loss 0.
    """

    name: str = "sal"
    weight: float = 5.0

    primary = "maxF"

    @property
    def channels(self) -> int:
        return 2

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        positive_B1HW = label_BKHW > 0.5  # ignored labels arrive as 0
        count_B = valid_B1HW.sum((1, 2, 3), keepdim=True).clamp(min=1)
        share_B = (positive_B1HW.sum((1, 2, 3), keepdim=True) / count_B).to(logits_BCHW.dtype)
        # Two-class softmax cross-entropy is the logistic loss of the difference of the logits.
        margin_B1HW = logits_BCHW[:, 1:] - logits_BCHW[:, :1]
        return weighted_bce(margin_B1HW, positive_B1HW, 1 - share_B, share_B)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "logistic", "balanced": True}

    @property
    def decoding(self) -> str:
        return "softmax"

    def decode(self, logits_BCHW: Tensor) -> Tensor:
        """Softmax probability of being salient, float32 [B,H,W]."""
        self._check_logits("decode", logits_BCHW)
        logits_BCHW = logits_BCHW.float()
        return torch.sigmoid(logits_BCHW[:, 1] - logits_BCHW[:, 0])

    def new_metric(self, **options: Any) -> MaxF:
        """`dmtl.metrics.MaxF`: maxF (beta^2 = 0.3) and its published variant maxF_paper, percent."""
        return MaxF(ignore=self.ignore, **options)
