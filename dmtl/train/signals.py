"""Asking a run to stop: SIGTERM (as batch systems send it) or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopRequest:
    """Context in which SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts as
    always. Outside the main thread, where Python allows no handlers, nothing is changed."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    @property
    def name(self) -> str:
        """Of the signal; where another process was asked, that of SIGTERM."""
        return signal.Signals(self.number or signal.SIGTERM).name

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
