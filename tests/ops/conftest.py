"""Fixtures of the op tests: Triton in its interpreter where there is no GPU, and outputs poisoned with
NaN."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel module is imported


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh floating tensors are full of NaN, so that an element that nobody writes is seen."""
    for name in ("empty", "empty_like", "empty_strided"):
        original = getattr(torch, name)

        def poison(*args, _original=original, **kwargs):
            out = _original(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(torch, name, poison)
