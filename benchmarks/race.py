"""Time contenders against one another: round robin in one process, because only ratios within one run are
meaningful."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from dmtl.runtime.measure import seconds

from . import clock
from .cases import Case
from .contenders import BASELINES, checked, names

LEAST_ROUNDS = 3
TURN_S = 0.1
"""A contender's turn lasts at least as long: the threads of the one before it spin for some milliseconds, and
its own caches are cold."""


class Race:
    """All contenders for one case, checked and warmed up.

    Args:
        case: what is predicted.
        precisions: default all that the device serves.
        who: names of contenders, default all.
        options: for the baselines, such as `modes` of the expert's compiler.
    """

    def __init__(
        self,
        case: Case,
        precisions: Sequence[str] | None = None,
        who: Sequence[str] | None = None,
        **options,
    ):
        self.case, self.device = case, torch.device(case.device)
        model = case.build().to(self.device)
        self.tasks = list(case.tasks or model.tasks)
        self.steps = case.steps or (model.config.steps if hasattr(model, "mtdnet") else 0)
        self.image = case.image()
        found = names(self.device, precisions, model.config)
        found = [pair for pair in found if who is None or pair[0] in who]
        self.rows: list[dict] = []
        self.contenders = {}
        for contender, row in checked(model, self.image, case, found, **options):
            self.rows.append(row)
            if contender is not None:
                self.contenders[contender.title] = contender
        self.times_s: dict[str, list[float]] = {title: [] for title in self.contenders}
        self.rounds = 0
        self._every(lambda call: call())

    def _every(self, measure) -> dict[str, float]:
        """Measure every contender's call once, starting with another one in every round."""
        titles = list(self.contenders)
        shift = self.rounds % max(1, len(titles))
        found = {}
        for title in titles[shift:] + titles[:shift]:
            contender = self.contenders[title]
            with contender.settings(), torch.inference_mode():
                found[title] = measure(lambda: contender.run(self.image))  # noqa: B023
        return found

    def round(self) -> None:
        """Time every contender for a turn, and take the median of its calls."""
        for title, taken in self._every(lambda call: turn(call, self.device)).items():
            self.times_s[title].append(taken)
        self.rounds += 1

    def run(self, rounds: int = 9, most_s: float = 60.0) -> list[dict]:
        """Run up to `rounds` rounds, at least 3, until `most_s` seconds have passed; return `result`."""
        while self.rounds < rounds and (self.rounds < LEAST_ROUNDS or self.spent_s < most_s):
            self.round()
        return self.result()

    @property
    def spent_s(self) -> float:
        """Return the seconds timed so far, counting one call a turn."""
        return sum(sum(times) for times in self.times_s.values())

    def result(self) -> list[dict]:
        """Return one row for each contender: times, and how many times faster it is than the fastest form of
        each baseline (`times_published`, `times_expert` and so on); or the reason why it was not timed."""
        references = {name: self._fastest(name) for name in BASELINES}
        against = {
            name: clock.ratios(self.times_s, title) for name, title in references.items() if title is not None
        }
        rows = []
        for row in self.rows:
            title = f"{row['contender']} {row['precision']}"
            row = self.described() | row
            if times := self.times_s.get(title):
                row |= clock.quantiles_ms(times) | {"rounds": len(times)}
                row["images_per_s"] = self.case.batch / statistics.median(times)
                row |= {f"times_{name}": ratio[title] for name, ratio in against.items()}
            rows.append(row)
        return rows

    def described(self) -> dict:
        """Describe the prediction, for a row."""
        facts = {"part": "contenders"} | self.case.described()
        return facts | {"steps": self.steps, "tasks": self.tasks}

    def _fastest(self, name: str) -> str | None:
        titles = [t for t, c in self.contenders.items() if c.name == name and self.times_s[t]]
        return min(titles, key=lambda title: statistics.median(self.times_s[title]), default=None)


def turn(call: Callable[[], object], device: torch.device) -> float:
    """Call for at least `TURN_S` seconds; return the median of the calls' seconds."""
    times: list[float] = []
    while sum(times) < TURN_S:
        times.append(seconds(call, device))
    return statistics.median(times)
