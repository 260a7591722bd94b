"""Fixtures of the op tests: outputs poisoned with NaN."""

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh floating tensors are full of NaN, so that an element that nobody writes is seen."""
    for name in ("empty", "empty_like", "empty_strided"):
        original = getattr(torch, name)

        def poison(*args, _original=original, **kwargs):
            out = _original(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(torch, name, poison)
