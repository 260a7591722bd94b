"""Choose the fastest of several ways to compute the same result, by timing each once per call signature.

On a GPU, replays of CUDA graphs are timed. Choices for GPUs are stored in choices.json, in $DMTL_CACHE or
else in the user's cache folder, so that the next process need not measure. DMTL_CACHE="" disables the file.
Delete it to measure again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import torch

import dmtl
from dmtl.runtime.capture import capture
from dmtl.runtime.files import write_text

ROUNDS = 5
_CALLS = 4  # calls in a graph that is timed, so that the launch of the graph itself counts little


class Fastest:
    """Remember the fastest way for each call signature: in this process, and for GPUs also in the file.

    Args:
        timer: function (call, device) -> seconds of one warm call; None: `warm_seconds`.
        name: key of these choices in the file; None: do not store them.
    """

    def __init__(
        self,
        timer: Callable[[Callable[[], object], torch.device], float] | None = None,
        name: str | None = None,
    ) -> None:
        self._timer, self._name = timer or warm_seconds, name
        self.winners: dict[Hashable, str] = {}

    def choose(self, kind: Hashable, ways: Mapping[str, Callable[[], object]], device: torch.device) -> str:
        """Time `ways` by calling them and return the name of the fastest.

        In three cases nothing is measured and the first name is returned: there is only one way; a CUDA graph
        is being captured; or torch.use_deterministic_algorithms is on, because two processes may choose
        differently and two ways may round differently.

        Args:
            kind: the call signature.
            ways: name -> function without arguments.
            device: device on which they run.
        """
        first = next(iter(ways))
        if len(ways) == 1 or torch.are_deterministic_algorithms_enabled():
            return first
        if kind not in self.winners:
            name = self._name if device.type == "cuda" else None
            winner = None if name is None else _stored(device, name, kind)
            if winner is None or winner not in ways:
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    return first
                times = {way: self._timer(call, device) for way, call in ways.items()}
                winner = min(times, key=lambda way: times[way])
                if name is not None:
                    _store(device, name, kind, winner)
            self.winners[kind] = winner
        return self.winners[kind]


def cache_folder() -> Path | None:
    """Return $DMTL_CACHE, or "dmtl" in the user's cache folder; None if caching is off."""
    chosen = os.environ.get("DMTL_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "dmtl"
    except RuntimeError:  # the user has no home folder
        return None


def _machine(device: torch.device) -> str:
    """Return the GPU and the versions of torch and dmtl: a choice is only valid for these."""
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, dmtl {dmtl.__version__}"


def _choices() -> dict:
    """Read the file; return an empty dict if it is missing or unreadable."""
    folder = cache_folder()
    try:
        found = json.loads((folder / "choices.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stored(device: torch.device, name: str, kind: Hashable) -> str | None:
    try:
        return _choices()[_machine(device)][name][repr(kind)]
    except (KeyError, TypeError):
        return None


def _store(device: torch.device, name: str, kind: Hashable, winner: str) -> None:
    """Add a choice to the file. If that fails, the next process measures again."""
    folder = cache_folder()
    if folder is None:
        return
    choices = _choices()
    choices.setdefault(_machine(device), {}).setdefault(name, {})[repr(kind)] = winner
    with contextlib.suppress(OSError):
        write_text(folder / "choices.json", json.dumps(choices, indent=1, sort_keys=True) + "\n")


def seconds(call: Callable[[], object], device: torch.device, rounds: int = 1) -> float:
    """Time `rounds` calls in a row and return the median time of a call in seconds, including GPU work.

    On a GPU the times are measured by events of its stream, otherwise by the wall clock.
    """
    if device.type != "cuda":
        return statistics.median(_wall_seconds(call) for _ in range(rounds))
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        marks[-1].synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks))


def warm_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the median time of several calls in seconds, after a first one that also compiles.

    On a GPU the calls are replays of a CUDA graph. The engine replays its network as a graph too, so the time
    that the host needs to launch a call must not influence the choice.
    """
    if device.type != "cuda":
        call()
        return seconds(call, device, ROUNDS)

    def several() -> None:
        for _ in range(_CALLS):
            call()

    replay, _ = capture(several, device)
    return seconds(replay, device, ROUNDS) / _CALLS


def _wall_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
