"""Compute the intersection over union of classes over the whole data set.

    IoU_c = TP_c / (TP_c + FP_c + FN_c),   mIoU = 100 mean_c IoU_c

The counts come from one confusion matrix. As published, a class that occurs in no label and no prediction has
IoU 0 and counts in the mean; `absent="skip"` excludes such classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmtl.metrics.base import Metric, histogram, ratio, zeros


class MeanIoU(Metric):
    """`mIoU`, `pixel_acc` (valid pixels with the right class) and `IoU/<class>`, all in percent.

    Args:
        classes: names of the classes, or their number n.
        ignore: label value to skip; labels outside 0 .. n-1 are skipped, too.
        absent: IoU of classes that never occur: "zero" (published) or "skip".

    A predicted id outside 0 .. n-1 counts as a miss of the labelled class, but not as a false positive.
    """

    integer_map = True

    def __init__(self, classes: Sequence[str] | int, *, ignore: float = 255.0, absent: str = "zero"):
        if absent not in ("zero", "skip"):
            raise ValueError(f"MeanIoU: absent must be 'zero' or 'skip', got {absent!r}")
        self.classes = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        self.absent = absent
        self.notes = {"mIoU": "published: 0 if unseen" if absent == "zero" else "of classes seen"}
        n = len(self.classes)
        # Rows are labels, columns predictions; the last column counts predictions outside all classes.
        super().__init__({"confusion": zeros(n, n + 1, dtype=torch.int64)}, ignore=ignore)

    def _accumulate(self, map_BHW: Tensor, label_BKHW: Tensor, valid_BHW: Tensor) -> None:
        n = len(self.classes)
        label_BHW = label_BKHW[:, 0]
        valid_BHW = valid_BHW & (label_BHW >= 0) & (label_BHW < n)
        label_BHW = torch.where(valid_BHW, label_BHW, n).long()  # row n collects skipped pixels
        map_BHW = map_BHW.long()
        map_BHW = torch.where((map_BHW >= 0) & (map_BHW < n), map_BHW, n)
        counts = histogram(label_BHW * (n + 1) + map_BHW, (n + 1) ** 2)
        self._add(confusion=counts.view(n + 1, n + 1)[:n])

    def compute(self) -> dict[str, float]:
        confusion = self._sums["confusion"].double().cpu()
        n = len(self.classes)
        hit = confusion.diagonal()
        union = confusion.sum(1) + confusion[:, :n].sum(0) - hit
        iou = hit / union.clamp(min=1e-8)
        counted = torch.ones_like(union, dtype=torch.bool) if self.absent == "zero" else union > 0
        total = confusion.sum().item()
        figures = {
            "mIoU": 100 * iou[counted].mean().item() if total else float("nan"),
            "pixel_acc": 100 * ratio(hit.sum().item(), total),
        }
        seen = (union > 0).tolist()
        per_class = {
            f"IoU/{c}": 100 * v if s or self.absent == "zero" else float("nan")
            for c, v, s in zip(self.classes, iou.tolist(), seen, strict=True)
        }
        return figures | per_class
