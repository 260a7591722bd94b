"""Compare metrics and time of an engine for several numbers of denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from dmtl.data import Batch, Loader
from dmtl.engine.engine import Engine
from dmtl.evaluation.protocol import Evaluation
from dmtl.models import Maps
from dmtl.runtime.measure import seconds


def compare_steps(
    evaluation: Evaluation,
    engine: Engine,
    several: Sequence[int | str | None],
    watch: Callable[[Loader], Iterable[Batch]] = lambda loader: loader,
    **options: Any,
) -> list[dict]:
    """Score an engine with each number of steps.

    Args:
        evaluation: the prepared data set.
        engine: the engine to score.
        several: the values of `steps` (see `Engine.maps`).
        watch: wraps the batches of each pass, for example in a progress bar.
        options: other arguments of `Evaluation.score`.

    Returns:
        A dictionary for each value with "steps", "metrics" and "ms_per_image"; for "auto" also "steps_taken",
        the mean number of steps per batch.
    """
    rows = []
    for steps in several:
        timed = TimedEngine(engine)
        metrics = evaluation.score(timed, watch(evaluation.loader), steps=steps, **options)
        milliseconds = 1e3 * timed.seconds / evaluation.description["images"]
        row: dict[str, Any] = {"steps": steps, "metrics": metrics, "ms_per_image": milliseconds}
        if steps == "auto":
            row["steps_taken"] = timed.taken / max(timed.calls, 1)
        rows.append(row)
    return rows


class TimedEngine:
    """Measure the time of an engine's calls.

    The first batch is computed once before it is timed, because that call may compile and measure.
    """

    def __init__(self, engine: Engine):
        self.engine, self.tasks, self.device = engine, engine.tasks, engine.device
        self.seconds, self.calls, self.taken = 0.0, 0, 0

    def maps(self, image: Tensor, tasks: Iterable[str], **options: Any) -> Maps:
        """Call `Engine.maps`, and add up its time and steps."""
        if not self.calls:
            self.engine.maps(image, tasks, **options)
        found: list[Maps] = []
        self.seconds += seconds(lambda: found.append(self.engine.maps(image, tasks, **options)), self.device)
        self.calls += 1
        self.taken += found[0].steps or 0
        return found[0]
