"""Time contenders against one another: round robin in one process, because only ratios within one run are
meaningful."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from dmtl.runtime.measure import seconds

from . import clock
from .cases import Case
from .contenders import BASELINES, Contender, checked, names

LEAST_ROUNDS = 3
TURN_S = 0.1
"""A contender's turn lasts at least as long: the threads of the one before it spin for some milliseconds, and
its own caches are cold."""


class Turns:
    """Time contenders in turns, starting with another one in every round.

    Args:
        contenders: by title; each has `settings()`, the context of its calls.
        call: runs a contender once.
        device: what they run on.
        calls: least number of calls in a turn.
    """

    def __init__(
        self,
        contenders: Mapping[str, Any],
        call: Callable[[Any], object],
        device: torch.device,
        calls: int = 1,
    ):
        self.contenders, self.device, self.rounds = contenders, device, 0
        self._call, self._calls = call, calls
        self.times_s: dict[str, list[float]] = {title: [] for title in contenders}
        for contender in contenders.values():
            with contender.settings():
                call(contender)

    def round(self) -> None:
        """Give every contender a turn, and keep the median of its calls."""
        titles = list(self.contenders)
        shift = self.rounds % max(1, len(titles))
        for title in titles[shift:] + titles[:shift]:
            call, times = partial(self._call, self.contenders[title]), []
            with self.contenders[title].settings():
                while sum(times) < TURN_S or len(times) < self._calls:
                    times.append(seconds(call, self.device))
            self.times_s[title].append(statistics.median(times))
            self.rest(self.contenders[title])
        self.rounds += 1

    def rest(self, contender: Any) -> None:
        """Free what the contender does not need until its next turn."""


class Race(Turns):
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
        device = torch.device(case.device)
        self.case, model = case, case.build().to(device)
        self.tasks = list(case.tasks or model.tasks)
        self.steps = case.steps or (model.config.steps if hasattr(model, "mtdnet") else 0)
        self.image = case.image()
        found = names(device, precisions, model.config)
        found = [pair for pair in found if who is None or pair[0] in who]
        self.rows: list[dict] = []
        contenders = {}
        for contender, row in checked(model, self.image, case, found, **options):
            self.rows.append(row)
            if contender is not None:
                contenders[contender.title] = contender
        super().__init__(contenders, self._predict, device)

    @torch.inference_mode()
    def _predict(self, contender: Contender) -> object:
        return contender.run(self.image)

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
