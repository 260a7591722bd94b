"""The paper's tables: the columns of each benchmark, and its published results.

    published("pascal-context", "one-label")[0].results["semseg"]      # 50.34

The results are in published.toml, each row with its source. Results that could not be recovered are missing.
If a row is not verified, `doubt` says why.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from dmtl.metrics.delta import Judged, delta_mtl

SETTINGS = {"one-label": "one label per image", "random-labels": "random labels", "full": "all labels"}


@dataclass(frozen=True)
class Column:
    """One column: the metric `metric` of a task, named `label`, with `digits` decimals."""

    task: str
    metric: str
    label: str
    higher_is_better: bool
    digits: int = 2

    @property
    def judged(self) -> Judged:
        return Judged(self.task, self.metric, self.higher_is_better)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, which has its own table in the paper.

    Attributes:
        name: name in options.
        title: heading of the table.
        columns: one for each task.
        classes: task -> number of classes; distinguishes benchmarks with the same tasks.
        images: number of images on which published results were scored; 0: unknown.
        frame: (height, width) of the frame in which they were scored; None: unknown.
        notes: remarks below the table.
        ids: regular expression of image names, for a release with the same classes but other units.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    classes: Mapping[str, int]
    images: int = 0
    frame: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    ids: str = ""

    @property
    def tasks(self) -> list[str]:
        return [column.task for column in self.columns]

    def recognises(self, tasks: Mapping[str, int], id: str = "") -> bool:
        """Return whether a data set is this benchmark.

        Args:
            tasks: name of a task -> number of classes, 1 if it has none.
            id: id of one of the images; "" if unknown.
        """
        counts = set(tasks) == set(self.tasks) and all(tasks[t] == n for t, n in self.classes.items())
        return counts and (not self.ids or re.fullmatch(self.ids, id) is not None)


_SEMSEG = Column("semseg", "mIoU", "mIoU", True)
_PARTS = Column("human_parts", "mIoU", "mIoU", True)
_SAL = Column("sal", "maxF_paper", "maxF", True)
EXACT_SAL = Column("sal", "maxF", "exact maxF", True)
_NORMALS = Column("normals", "mean", "mErr", False)
_EDGE = Column("edge", "odsF_seism", "odsF", True)
_ABS_ERR = Column("depth", "abs_err", "absErr", False, 4)
_RMSE = Column("depth", "rmse", "RMSE", False, 4)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "pascal-context",
            "PASCAL-Context",
            (_SEMSEG, _PARTS, _SAL, _NORMALS, _EDGE),
            {"semseg": 21, "human_parts": 7},
            images=5105,
            frame=(512, 512),
            notes=(
                "Published odsF covers the 2,498 validation images of the tool's list test_new.",
                "Published maxF is the paper's variant (a second sigmoid), here maxF_paper.",
            ),
        ),
        Benchmark("nyud-13", "NYUD-v2, 13 classes", (_SEMSEG, _ABS_ERR, _NORMALS), {"semseg": 13}, 654),
        Benchmark("nyud-40", "NYUD-v2, 40 classes", (_SEMSEG, _RMSE, _NORMALS, _EDGE), {"semseg": 40}, 654),
        Benchmark(
            "cityscapes-7",
            "Cityscapes, 7 classes",
            (_SEMSEG, _ABS_ERR),
            {"semseg": 7},
            images=500,
            notes=("Whether the paper's own table counts 7 or 19 classes is not known.",),
        ),
        Benchmark(  # before the arrays, which have the same classes but other depth units
            "cityscapes-raw",
            "Cityscapes, 19 classes, raw release",
            (_SEMSEG, _ABS_ERR),
            {"semseg": 19},
            images=500,
            notes=("Depth is disparity in pixels, not the inverse depth of the published arrays.",),
            ids=r"(.+/)?[a-z-]+_\d{6}_\d{6}",
        ),
        Benchmark("cityscapes-19", "Cityscapes, 19 classes", (_SEMSEG, _ABS_ERR), {"semseg": 19}, 500),
    )
}


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        benchmark: name of the benchmark.
        setting: label setting.
        method: name of the method.
        source: where the results were published.
        results: task -> result; {} if they could not be recovered.
        doubt: why the row is not verified; "" if it is.
        network: name of the network, if it is not that of the paper.
        delta: Delta_MTL as printed.
        delta_doubt: why `delta` is uncertain; "" if it is not.
    """

    benchmark: str
    setting: str
    method: str
    source: str
    results: Mapping[str, float] = field(default_factory=dict)
    doubt: str = ""
    network: str = ""
    delta: float | None = None
    delta_doubt: str = ""

    @property
    def reference(self) -> str:
        """Return the source, with a dagger and the reason if the row is not verified."""
        return self.source + (f" (†: {self.doubt})" if self.doubt else "")


@cache
def every_row() -> tuple[Published, ...]:
    """Return all published rows, in the order of their file."""
    found = tomllib.loads(files("dmtl.report.paper").joinpath("published.toml").read_text("utf-8"))
    rows = []
    for row in found["row"]:
        benchmark, setting = row.pop("table")
        source = found["sources"][row.pop("source")]
        rows.append(
            Published(benchmark, setting, source=source["text"], doubt=source.get("doubt", ""), **row)
        )
    return tuple(rows)


def published(benchmark: str, setting: str) -> list[Published]:
    """Return the published rows of one table; [] if there is none."""
    return [row for row in every_row() if (row.benchmark, row.setting) == (benchmark, setting)]


def published_delta(row: Published) -> float | None:
    """Return Delta_MTL in percent compared with the published single-task networks.

    These are of the same table and network. None: results could not be recovered, or `row` is that of the
    single-task networks.
    """
    reference = next(
        (
            other
            for other in published(row.benchmark, row.setting)
            if other.method == "STL" and other.results and other.network == row.network and not other.doubt
        ),
        None,
    )
    if reference is None or row is reference or not row.results:
        return None
    columns = BENCHMARKS[row.benchmark].columns
    ours, theirs = ({c.task: {c.metric: each.results[c.task]} for c in columns} for each in (row, reference))
    return delta_mtl(ours, theirs, [column.judged for column in columns])
