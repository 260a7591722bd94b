"""The data set of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.conftest import write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Eight training and two validation images of 32x32, every label on disk."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def _exact(one_thread):
    """Bit-equal results need a fixed number of threads."""
