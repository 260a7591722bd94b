"""Metrics, whose sums can be merged over batches and processes, and Delta_MTL.

| class | predictions | metrics |
| --- | --- | --- |
| `MeanIoU` | class ids | mIoU, pixel_acc, IoU/<class> (percent) |
| `MaxF` | probabilities | maxF, maxF_paper (percent) |
| `PixelF` | probabilities | pixelF (percent) |
| `Edge` | probabilities | pixelF (percent), loss (published), bce |
| `Boundary` | probabilities | odsF, oisF, AP of boundaries matched with a tolerance (percent) |
| `Angular` | unit vectors | mean, median, rmse (degrees), within_11.25, within_22.5, within_30 (percent) |
| `Depth` | numbers | rmse, abs_err (unit of the label), log_rmse, abs_rel, sq_rel |
| `ErrorAuroc` | uncertainties | area under the ROC curve of error by uncertainty |
"""

from dmtl.metrics.angular import Angular, angle_deg, normalise
from dmtl.metrics.auroc import ErrorAuroc
from dmtl.metrics.base import Metric, known_pixels
from dmtl.metrics.boundary import Boundary
from dmtl.metrics.delta import delta_mtl
from dmtl.metrics.depth import Depth
from dmtl.metrics.maxf import Edge, MaxF, PixelF
from dmtl.metrics.miou import MeanIoU

__all__ = [
    "Angular",
    "Boundary",
    "Depth",
    "Edge",
    "ErrorAuroc",
    "MaxF",
    "MeanIoU",
    "Metric",
    "PixelF",
    "angle_deg",
    "delta_mtl",
    "known_pixels",
    "normalise",
]
