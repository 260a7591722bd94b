"""Write the page of a data set: samples with labels, statistics of labels, and which image has which
label."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from dmtl.data import LabelledImages
from dmtl.data.folder.statistics import Statistics, TaskStatistics, measure
from dmtl.data.loading.order import evenly
from dmtl.errors import DataError
from dmtl.report.html.content import Cell, SamplePictures
from dmtl.report.html.images import label_section
from dmtl.report.html.template import page
from dmtl.runtime.files import write_text
from dmtl.tasks import Task
from dmtl.tasks.palette import vector_colours
from dmtl.text import fixed, number

MEASURED = 200  # number of images used for the statistics
_BINS = 48  # bins of a histogram
_CELLS = 25  # cells along the diameter of the disc of directions


def dataset_report(
    dataset: LabelledImages,
    out_path: str | os.PathLike,
    *,
    count: int = 8,
    measured: int | None = MEASURED,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Path:
    """Write the page of a data set as one self-contained HTML file.

    The page lists samples that cannot be read.

    Args:
        dataset: the data set.
        out_path: the file to write.
        count: number of samples to show, evenly spread over the split.
        measured: number of images used for the statistics, evenly spread; None: all.
        workers: processes that read these images; 0: use this process.
        progress: wraps the loop over these images.

    Returns:
        The path of the page.

    Raises:
        OSError: the page cannot be written.
    """
    indices = evenly(len(dataset), len(dataset) if measured is None else measured)
    statistics = measure(dataset, indices, workers=workers, progress=progress)
    samples, errors = _samples(dataset, evenly(len(dataset), count))
    text = page(
        "dataset.html.j2",
        title=f"{dataset.name}, {dataset.split}",
        facts=_facts(dataset, statistics),
        labels=label_section(dataset.available(), dataset.sources),
        samples=samples,
        legends=_legends(dataset.tasks),
        panels=[_panel(task) for task in statistics.tasks.values()],
        measured=f"{statistics.images:,} of {len(dataset):,}",
        notes=[f"Cannot be read: {error}" for error in dict.fromkeys([*errors, *statistics.errors])],
    )
    path = Path(out_path)
    write_text(path, text)
    return path


def _facts(dataset: LabelledImages, statistics: Statistics) -> list[tuple[str, object]]:
    per_image = dataset.available().statistics()["labels_per_image"]
    labels = sum(int(number) * count for number, count in per_image.items())
    sizes = sorted(statistics.sizes)
    frame, max_dist = dataset.evaluation.get("frame"), dataset.evaluation.get("max_dist")
    facts = [
        ("Images", f"{len(dataset):,}"),
        ("Tasks", len(dataset.tasks)),
        ("Labels", f"{labels:,}"),
        ("Height × width", _sizes(sizes)),
        ("Scored in a frame of", frame and f"{frame[0]} × {frame[1]}"),
        ("Boundaries match within", max_dist and f"{max_dist:g} of the diagonal"),
    ]
    return [(label, value) for label, value in facts if value]


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    if len(sizes) == 1:
        return f"{sizes[0][0]} × {sizes[0][1]}"
    (low_h, high_h), (low_w, high_w) = ((min(side), max(side)) for side in zip(*sizes))
    return f"{low_h}–{high_h} × {low_w}–{high_w}"


def _samples(dataset: LabelledImages, indices: Sequence[int]) -> tuple[list[SamplePictures], list[str]]:
    """Return pictures of images with their labels, and an error message for each that cannot be read."""
    shown, errors = [], []
    for index in indices:
        try:
            sample = dataset.read(index)
        except DataError as error:
            errors.append(str(error))
            continue
        cells = []
        for name, task in dataset.tasks.items():
            label = sample.labels.get(name)
            if label is None:
                cells.append(Cell(name, None))
                continue
            reach = task.value_range(label)
            scale = "" if reach is None else f"{number(reach[0], 3)} to {number(reach[1], 3)}"
            cells.append(Cell(name, task.label_picture(label, reach), scale=scale))
        image = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        shown.append(SamplePictures(sample.id, image, {"labels": cells}))
    return shown, errors


def _panel(found: TaskStatistics) -> dict:
    """Describe the labels of one task: shares of its classes, largest first, or a picture of its values."""
    task, svg, text = found.task, None, ""
    names = task.label_names if found.known else ()
    classes = []
    if names:
        shown = [i for i in np.argsort(-found.counts, kind="stable") if found.counts[i]]
        colours = [_rgb(rgb) for _, rgb in task.legend()]
        classes = [(names[i], colours[i], found.counts[i], int(found.present[i])) for i in shown]
    elif found.known and task.label_channels == 1:
        low, middle, high = map(float, np.percentile(found.values, [1, 50, 99]))
        svg = _histogram(found, low, high)
        text = (
            f"Median {number(middle, 3)}; 98 % lie between {number(low, 3)} and {number(high, 3)}; "
            f"minimum {number(found.low, 3)}, maximum {number(found.high, 3)}."
        )
    elif found.known:
        text = f"Mean vector ({', '.join(fixed(float(x), 2) for x in found.values.mean(0))})."
        if task.unit_length:
            svg = _disc(found.values)
            text = (
                "Directions seen from the front, with x to the right and y downwards. The colour is the "
                f"direction; the stronger it is, the more often the direction occurs. {text}"
            )
    absent = [name for name, count in zip(names, found.counts, strict=True) if not count] if names else []
    return {"found": found, "classes": classes, "absent": absent, "svg": svg, "text": text}


def _legends(tasks: Mapping[str, Task]) -> list[tuple[str, list]]:
    """Return the legends of the report, except those of probabilities, because labels are not
    probabilities."""
    found = []
    for name, task in tasks.items():
        if keys := task.legend():
            words = task.label_names or [word for word, _ in keys]
            found.append((name, [(word, rgb) for word, (_, rgb) in zip(words, keys, strict=True)]))
    return found


def _histogram(found: TaskStatistics, low: float, high: float) -> Markup:
    """Draw a histogram of numbers from `low` to `high` in the colours of the task's pictures."""
    high = max(high, low + 1e-6)
    counts, edges = np.histogram(found.values, _BINS, (low, high))
    centres = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
    colours = found.task.picture(centres[None], (low, high))[0]
    width, height = 400 / _BINS, 96
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{height * (1 - n / counts.max()):.2f}" width="{width - 0.6:.2f}" '
        f'height="{height * n / counts.max():.2f}" fill="{_rgb(colour)}"/>'
        for i, (n, colour) in enumerate(zip(counts, colours, strict=True))
        if n
    )
    marks = ((0, "start", low), (200, "middle", (low + high) / 2), (400, "end", high))
    texts = "".join(f'<text x="{x}" y="112" text-anchor="{a}">{number(v, 3)}</text>' for x, a, v in marks)
    axis = f'<path class="axis" d="M0 {height + 0.5}H400" fill="none"/>'
    label = f"Histogram of {found.task.name}"
    return Markup(
        f'<svg class="chart" viewBox="0 0 400 116" role="img" aria-label="{label}">{bars}{axis}{texts}</svg>'
    )


def _disc(values_N3: np.ndarray) -> Markup:
    """Draw how often directions occur, by x and y, seen along the third axis; stronger means more often."""
    edges = np.linspace(-1, 1, _CELLS + 1)
    counts, _, _ = np.histogram2d(values_N3[:, 1], values_N3[:, 0], (edges, edges))
    share = np.log1p(counts) / np.log1p(counts.max())
    y, x = np.meshgrid(*2 * ((edges[:-1] + edges[1:]) / 2,), indexing="ij")
    rest = 1 - x**2 - y**2
    z = np.sqrt(np.maximum(rest, 0)) * (-1 if values_N3[:, 2].mean() < 0 else 1)
    colours = vector_colours(np.stack([x, y, z]))
    size = 160 / _CELLS
    cells = "".join(
        f'<rect x="{j * size:.2f}" y="{i * size:.2f}" width="{size:.2f}" height="{size:.2f}" '
        f'fill="{_rgb(colours[i, j])}" fill-opacity="{0.1 + 0.9 * share[i, j]:.2f}"/>'
        for i, j in zip(*np.nonzero((rest > -0.08) | (counts > 0)))
    )
    return Markup(
        '<svg class="disc" viewBox="-4 -4 168 168" role="img" aria-label="How often each direction occurs">'
        f'{cells}<circle class="axis" cx="80" cy="80" r="80" fill="none"/></svg>'
    )


def _rgb(colour: Iterable[float]) -> str:
    return "rgb({},{},{})".format(*(int(v) for v in colour))
