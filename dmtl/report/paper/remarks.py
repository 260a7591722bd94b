"""Write remarks on a table of results: the reference of Delta_MTL, and why rows cannot be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dmtl.data.labels.choose import GENERATED
from dmtl.evaluation.baseline import EVAL
from dmtl.report.paper.published import Benchmark
from dmtl.report.paper.table import PaperTable, Row
from dmtl.report.runs.comparison import Delta
from dmtl.report.runs.run import TRAINING, Run
from dmtl.report.runs.values import mean_of, text_of
from dmtl.text import fixed

OF_BOUNDARIES = ("boundaries", "max_dist", "boundary_images")  # their values are None without boundaries
PROTOCOL = {  # keys of a protocol, in words
    "data": "the data",
    "split": "the split",
    "images": "the number of images",
    "frame": "the frame",
    "boundaries": "the boundaries' protocol",
    "max_dist": "max_dist",
    "boundary_images": "the number of images with boundaries",
    "size": "the size",
}


def remarks_on(table: PaperTable) -> list[str]:
    """Return all remarks, the most important first."""
    measured = table.measured
    runs = [(row, run) for row in measured for run in row.runs]
    remarks = [*_basis(table), *_printed(table)]
    if measured:
        remarks += [*_files(measured), *_differences(runs), *_labels(runs), *_next_to_published(table)]
        remarks += _not_scored(table)
    remarks += [remark for row in measured if row.measured for remark in row.measured.repeated()]
    return remarks + (list(table.benchmark.notes) if table.benchmark else [])


def _basis(table: PaperTable) -> list[str]:
    """Name the reference and the tasks of the measured rows' Delta_MTL."""
    if not table.measured:
        return []
    reference = table.reference
    if reference is None:
        return ["Measured rows have no Delta_MTL: there is no run of STL or MTL with these data and labels."]
    found = [(row, row.delta) for row in table.measured if row.delta]
    remarks = []
    if len(table.measured) > 1 and reference.method != "STL":
        remarks.append(f"Delta_MTL of measured rows is relative to {reference.name}; there are no STL runs.")
    remarks += [
        f"Delta_MTL of {row.name} is not paired by seed; it is relative to the mean of {reference.name}."
        for row, delta in found
        if not delta.paired
    ]
    for missing in dict.fromkeys(_missing(table, delta) for _, delta in found):
        names = ", ".join(row.name for row, delta in found if _missing(table, delta) == missing)
        if missing:
            over = f"{len(table.columns) - len(missing)} of {len(table.columns)} tasks"
            remarks.append(f"* Delta_MTL of {names} is over {over}, without {', '.join(missing)}.")
    printed = {row.method: row.delta for row in table.rows if row.published and row.certain and row.delta}
    return remarks + [
        f"{row.name}: Delta_MTL {text_of(delta.value, 2, sign=True)} here, "
        f"{text_of(printed[row.method].value, 2, sign=True)} published."
        for row, delta in found
        if reference.method == "STL" and row.method in printed and not _missing(table, delta)
    ]


def _missing(table: PaperTable, delta: Delta) -> tuple[str, ...]:
    return tuple(column.task for column in table.columns if column.task not in delta.tasks)


def _printed(table: PaperTable) -> list[str]:
    """Compare Delta_MTL of published rows, computed here, with the printed value."""
    found = [(row, row.printed, row.delta) for row in table.rows if row.printed and row.certain and row.delta]
    if not found:
        return []
    text = "Delta_MTL of published rows was computed by dmtl, relative to the published STL"
    told: dict[str, list[str]] = {}
    for row, printed, delta in found:
        if printed.delta is None:
            continue
        same = abs(mean_of(delta.value) - printed.delta) < 0.0051
        what = "as printed" if same else f"not as printed ({fixed(printed.delta, 2, sign=True)})"
        doubt = f" (†: {printed.delta_doubt})" if printed.delta_doubt else ""
        told.setdefault(what + doubt, []).append(row.name)
    return [
        "; ".join([text, *(f"for {' and '.join(names)} it is {what}" for what, names in told.items())]) + "."
    ]


def _files(measured: Iterable[Row]) -> list[str]:
    by_file = {file: [row.name for row in measured if file in row.files] for file in (EVAL, TRAINING)}
    named = [f"of {', '.join(names)} are from {file}" for file, names in by_file.items() if names]
    text = f"Results {'; those '.join(named)}."
    return [text if len(named) == 1 else f"Scored differently: {text[0].lower()}{text[1:]}"]


def _differences(runs: Iterable[tuple[Row, Run]]) -> list[str]:
    """Name the keys of the protocol in which rows differ (if the results of each row are from one file)."""
    runs, found = list(runs), []
    for file in (EVAL, TRAINING):
        for key, words in PROTOCOL.items():
            values: dict[str, str] = {}
            for row, run in runs:
                value = run.protocol.get(key)
                if run.file != file or key not in run.protocol:
                    continue
                if value is not None or key not in OF_BOUNDARIES:
                    values.setdefault(_text(value), row.name)
            if len(values) > 1:
                each = ", ".join(f"{value} ({name})" for value, name in values.items())
                found.append(f"Scored differently: {words} is {each}.")
    for row, run in runs:
        data, root = run.protocol.get("data"), run.setting("data", "root")
        if data and root and Path(str(data)).name != Path(str(root)).name:
            found.append(f"{row.name} was trained on {root} and scored on {data}.")
    return list(dict.fromkeys(found))


def _labels(runs: Iterable[tuple[Row, Run]]) -> list[str]:
    """Name rows that were trained on labels of other images than the first row with the same task."""
    first: dict[str, tuple[str, set[str]]] = {}
    found = []
    for row, labels in ((row, run.labels) for row, run in runs if run.labels):
        for task in labels.tasks:
            ids = {id for id, on in zip(labels.ids, labels.column(task), strict=True) if on}
            name, theirs = first.setdefault(task, (row.name, ids))
            if ids != theirs:
                found.append(f"{row.name} was trained on {task} labels of other images than {name}.")
    return list(dict.fromkeys(found))


def _next_to_published(table: PaperTable) -> list[str]:
    """Return why measured results cannot be compared with published ones."""
    if table.benchmark is None or not any(row.published and row.values for row in table.rows):
        return []
    reports: dict[str, list[str]] = {}
    for row in table.measured:
        for what in dict.fromkeys(what for run in row.runs for what in _apart(run, table.benchmark)):
            reports.setdefault(what, []).append(row.name)
    found = []
    for what, names in reports.items():
        rows = f"Rows {', '.join(names)}" if names[1:] else f"Runs of {names[0]}"
        found.append(f"{'Measured rows' if len(names) == len(table.measured) else rows} {what}.")
    return found


def _apart(run: Run, benchmark: Benchmark) -> Iterator[str]:
    """Yield how a run differs from published ones, as the end of a sentence about its row."""
    images, frame = run.protocol.get("images"), run.protocol.get("frame")
    if images is not None and benchmark.images and images != benchmark.images:
        yield f"were scored on {images:,} images; published results cover {benchmark.images:,}"
    as_published = frame and run.file != TRAINING and tuple(frame) == benchmark.frame
    if benchmark.frame and not as_published:
        where = "in another frame" if frame else "without a frame"
        yield f"were scored {where}; published results use a frame of {_text(benchmark.frame)}"
    if run.setting("data", "labels") in GENERATED:
        yield "learned from newly chosen labels, not from the published choice"


def _not_scored(table: PaperTable) -> list[str]:
    """Name rows whose boundaries were not scored."""
    tasks = {c.task for c in table.columns if c.metric.startswith("odsF")}
    rows = [row for row in table.measured if any(tasks & run.primary.keys() for run in row.runs)]
    names = ", ".join(row.name for row in rows if not tasks & row.values.keys())
    how = "`dmtl eval RUN --boundaries seism --json RUN/eval.json` scores it"
    return [f"No odsF of {names}; {how}."] if names else []


def _text(value: object) -> str:
    if value is None:
        return "none"
    return " × ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
