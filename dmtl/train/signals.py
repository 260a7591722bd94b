"""Requests to stop a run: SIGTERM (sent by batch systems) or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dmtl.errors import DmtlError


class RunStopped(DmtlError):
    """A run was asked to stop (SIGTERM, Ctrl-C), or stopped itself. Its state is saved.

    `status` is the exit status for the process: 128 + the number of the signal, as in shells, or 1.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


class Interrupted(BaseException):
    """A stop was requested during a wait that might never end."""


class StopRequest:
    """In this context, let SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts as
    usual.

    Outside the main thread, where Python allows no signal handlers, nothing changes.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Return whether a signal has arrived."""
        return self.number != 0

    @property
    def name(self) -> str:
        """Return the name of the signal; SIGTERM if another process received it."""
        return signal.Signals(self.number or signal.SIGTERM).name

    @contextmanager
    def ends_waiting(self) -> Iterator[None]:
        """In this context, raise `Interrupted` on a signal; use it for waits that can be aborted without
        loss."""
        self._waits = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._waits = False

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
        if self._waits:
            raise Interrupted
