"""Fixtures of the op tests: outputs poisoned with NaN."""

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh floating tensors are full of NaN, so that an element that nobody writes is seen."""
    makers = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    for owner, name in makers:
        original = getattr(owner, name)

        def poison(*args, _original=original, **kwargs):
            out = _original(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(owner, name, poison)
