"""How much longer predictions and training steps take while other processes compute.

    python -m benchmarks.busy [--rounds 5] [--contenders dmtl] [--out rows.jsonl]

The others are endless loops of one thread each. With t threads on as many cores, a fair scheduler leaves a
process t / (t + n) of the cores next to n loops, so its time should grow by the factor 1 + n / t.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from dmtl.models.pretrained import BUILTIN
from dmtl.runtime import cores

from .cases import of_model
from .facts import keep
from .race import Race
from .training import TrainingCase, TrainingRace, recipe_case

OTHERS = (0, 1, 2)
WHO = ("published", "dmtl")


@contextmanager
def computing(others: int) -> Iterator[None]:
    """In this context, `others` processes compute without pause."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        time.sleep(0.3 if others else 0.0)  # until they loop
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def races(who: Sequence[str]) -> Iterator[tuple[str, dict, Race | TrainingRace]]:
    """Yield (what is timed, description of the case, race) one after another, because of their memory."""
    for size in ((512, 512), (128, 160)):
        case = of_model(BUILTIN).but(size=size)
        yield "prediction", case.described(), Race(case, ["fp32"], who)
    for diffusion in ("none", "feature"):
        training = TrainingCase(recipe_case(diffusion, "cpu"))
        yield "training step", training.described(), TrainingRace(training, [(name, "fp32") for name in who])


def slowdowns(rounds: int, who: Sequence[str] = WHO) -> Iterator[dict]:
    """Yield a row for each case, contender and number of other processes: the median time, and how many times
    the undisturbed one it is. Before timing, kernels may adapt to the machine (`dmtl.runtime.cores`)."""
    for what, case, race in races(who):
        found: dict[str, list[float]] = {title: [] for title in race.times_s}
        for others in OTHERS:
            with computing(others):
                race.round()
                end = time.monotonic() + 2 * cores.HOLD[1]
                while not others and cores.threads() < torch.get_num_threads() and time.monotonic() < end:
                    race.round()
                for _ in range(rounds):
                    race.round()
            for title, times in race.times_s.items():
                found[title].append(statistics.median(times[-rounds:]))
        for title, medians in found.items():
            for others, median in zip(OTHERS, medians, strict=True):
                row = {"part": "busy", "what": what, **case, "contender": title, "others": others}
                yield row | {"median_ms": 1e3 * median, "times_quiet": median / medians[0]}


def main() -> None:
    """Print the rows, and append them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that each contender runs with each number"
    )
    parser.add_argument("--out", type=Path, help="file to which rows are appended as JSON lines")
    parser.add_argument("--contenders", nargs="+", choices=WHO, default=WHO, help="default: all")
    args = parser.parse_args()
    for row in slowdowns(args.rounds, args.contenders):
        print(json.dumps(row), flush=True)
        if args.out:
            keep([row], args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
