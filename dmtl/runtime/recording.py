"""Where CPU kernels report their calls while a computation is recorded (`dmtl.engine.replay`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

_local = threading.local()


class Recording(Protocol):
    """What a recording wants to know of a kernel's call, which runs after this."""

    def kernel(
        self, name: str, dtype: int, threads: int, raw: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> None: ...


def recording() -> Recording | None:
    """Return this thread's recording, or None."""
    return getattr(_local, "recording", None)


@contextmanager
def record_in(target: Recording) -> Iterator[None]:
    """Report calls of this thread's kernels to `target` in this context."""
    _local.recording = target
    try:
        yield
    finally:
        _local.recording = None
