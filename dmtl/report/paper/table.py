"""A table of the paper: measured rows next to published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dmtl.evaluation.baseline import EVAL
from dmtl.report.paper.published import SETTINGS, Benchmark, Column, Published
from dmtl.report.runs.comparison import Delta
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import TRAINING, Run
from dmtl.report.runs.values import Value, best_of, texts_of, tone_of

SHORT = {EVAL: "eval", TRAINING: "train"}
LOST, REFERENCE = (
    "n.r.",
    "ref.",
)  # texts for results that were not recovered, and for the reference's Delta_MTL
DAGGER = "\N{DAGGER}"


class Cell(NamedTuple):
    """A result as text.

    Attributes:
        mean: the mean over seeds; "" if there is no result.
        spread: the standard deviation; "" for one seed.
        best: whether it is the best of its column.
        tone: colour of a Delta_MTL (`values.tone_of`).
    """

    mean: str = ""
    spread: str = ""
    best: bool = False
    tone: str = ""


@dataclass(eq=False)
class Row:
    """A row of the table.

    Attributes:
        method: name of the method in the paper, such as "STL" or "Feature".
        values: task -> result over seeds; a task without results is missing.
        detail: text that distinguishes measured rows of the same method.
        measured: the runs of a measured row; None for a published row.
        printed: the published row; None for a measured row.
        delta: Delta_MTL, if it was computed.
    """

    method: str
    values: Mapping[str, Value]
    detail: str = ""
    measured: Method | None = None
    printed: Published | None = None
    delta: Delta | None = None

    @property
    def published(self) -> bool:
        return self.printed is not None

    @property
    def name(self) -> str:
        detail = self.printed.network if self.printed else self.detail
        return self.method + (f" ({detail})" if detail else "")

    @property
    def label(self) -> str:
        """Return the name, with a dagger if the row is not verified."""
        return self.name + (DAGGER if self.printed and self.printed.doubt else "")

    @property
    def certain(self) -> bool:
        """Return whether statements may use the row: it is measured, or verified and of the paper's
        network."""
        return self.printed is None or not (self.printed.doubt or self.printed.network)

    @property
    def runs(self) -> Sequence[Run]:
        return self.measured.runs if self.measured else ()

    @property
    def seeds(self) -> list[int]:
        return self.measured.seeds if self.measured else []

    @property
    def files(self) -> list[str]:
        """Return the names of the files with its results."""
        return list(dict.fromkeys(run.file for run in self.runs))


@dataclass
class PaperTable:
    """A table of one benchmark and label setting.

    Attributes:
        title: heading of the table.
        setting: label setting.
        benchmark: the benchmark; None for a data set that is not in the paper.
        columns: one for each task.
        rows: in the order of the paper; for each method, published rows come first.
        reference: the row to which Delta_MTL of measured rows is relative.
        remarks: sentences below the table.
    """

    title: str
    setting: str
    benchmark: Benchmark | None
    columns: Sequence[Column]
    rows: list[Row]
    reference: Row | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        return f"{self.title}, {SETTINGS.get(self.setting, self.setting)}"

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if not row.published]

    @property
    def sources(self) -> list[str]:
        """Return the sources of published rows, each only once."""
        return list(dict.fromkeys(row.printed.reference for row in self.rows if row.printed))

    def best(self, column: Column, among_published: bool) -> list[Row]:
        """Return the rows with the best result in a column, among the certain published or measured ones.

        The result is [] if there is nothing to compare.
        """
        rows = [row for row in self.rows if row.published == among_published and row.certain]
        values = {row: row.values[column.task] for row in rows if column.task in row.values}
        return best_of(values, column.higher_is_better)

    def origin(self, row: Row) -> str:
        """Return where the results of a row come from.

        "[1]" means the first of `sources`, "eval" means eval.json, and "train" metrics.json.
        """
        if row.printed:
            return f"[{self.sources.index(row.printed.reference) + 1}]"
        return "+".join(SHORT[file] for file in row.files)

    def cells(self, row: Row) -> list[Cell]:
        """Return a row as text: a cell for each column, then Delta_MTL.

        Published results are shown as printed. Delta_MTL gets a star if it does not cover all tasks.
        """
        if not row.measured and not row.values:
            return [Cell(LOST)] * (len(self.columns) + 1)
        cells = []
        for column in self.columns:
            if (value := row.values.get(column.task)) is None:
                cells.append(Cell())
                continue
            printed = len(str(value).partition(".")[2]) if row.published else 0
            texts = texts_of(value, max(column.digits, printed))
            cells.append(Cell(*texts, best=row in self.best(column, row.published)))
        if row.delta is None:
            return [*cells, Cell(REFERENCE if row is self.reference else "")]
        mean, spread = texts_of(row.delta.value, 2, sign=True)
        star = "*" if len(row.delta.tasks) < len(self.columns) else ""
        return [*cells, Cell(mean + star, spread, tone=tone_of(row.delta.value) if row.certain else "")]
