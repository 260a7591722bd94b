"""Report data made up of nothing but numbers."""

import numpy as np
import pytest

from dmtl.data import LabelMatrix
from dmtl.report import Cell, Chart, MetricRow, ReportData, SamplePictures
from dmtl.report.html.content import Uncertainty, UncertaintyRow


def noise(height=24, width=32):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def data() -> ReportData:
    """Two methods, two tasks, every section filled."""
    ids = [f"image{i}" for i in range(12)]
    cells = [
        Cell("label", noise(), "not labelled in training"),
        Cell("initial map", noise()),
        Cell("step 1, final", noise()),
        Cell("uncertainty (8 samples)", noise(), scale="0 to 1.1 nats"),
    ]
    return ReportData(
        title="A report",
        facts=[("Steps", 1000), ("Data", "scenes")],
        label_matrix=LabelMatrix.one_label(ids, ["semseg", "depth"], seed=0),
        metrics=[
            MetricRow("semseg", "mIoU", "%", True, {"MTL": (40.0, 0.5), "DiffusionMTL": (42.0, 0.25)}),
            MetricRow(
                "semseg",
                "pixel_acc",
                "%",
                True,
                {"MTL": (80.0, 0.5), "DiffusionMTL": (79.0, 0.5)},
                primary=False,
            ),
            MetricRow("depth", "rmse", "m", False, {"MTL": (0.5, 0.01), "DiffusionMTL": (0.51, 0.02)}),
        ],
        delta={"DiffusionMTL": (1.5, 0.4)},
        runs=3,
        curves=[
            Chart(
                "Loss",
                "step",
                "loss",
                {"MTL": ([0, 10, 20], [3, 2, 1]), "DiffusionMTL": ([0, 20], [4, 1])},
                log_y=True,
            )
        ],
        uncertainty=Uncertainty(
            "DiffusionMTL",
            8,
            48,
            [
                UncertaintyRow("semseg", 0.812, "entropy, nats", "another class than labelled"),
                UncertaintyRow("depth", 0.43, "variance, m²", "error above the median"),
            ],
        ),
        samples=[
            SamplePictures(
                "image3",
                noise(40, 30),
                {"semseg": cells, "depth": [Cell("label", None)]},
            )
        ],
        legends={"semseg": [("sky", (10, 20, 30))]},
        notes=["Same batches for both."],
    )
