"""The native core of the metrics, by instruction set, and what stands in for it."""

from __future__ import annotations

import pytest

from dmtl.runtime import native

ISAS = native.core().isas() if native.core() else []


@pytest.fixture(params=[*ISAS, "without core"])
def solver(request, monkeypatch):
    """Every instruction set of the native core, and its replacement."""
    if request.param == "without core":
        monkeypatch.setattr(native, "core", lambda: None)
        yield
    else:
        core, before = native.core(), native.core().isa()
        core.use_isa(request.param)
        yield
        core.use_isa(before)
