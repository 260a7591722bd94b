"""Files opened and decoded once within `read_once`, and what it tells of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmtl.data.folder import read_once as module
from dmtl.data.folder.images import image_size, read_image, read_npy, read_png_map
from dmtl.data.folder.read_once import read_once
from dmtl.errors import DataError


@pytest.fixture
def path(tmp_path) -> Path:
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_file_that_has_gone_is_still_known_until_the_end(path):
    content = path.read_bytes()
    with read_once() as files:
        pixels = read_png_map(path)
        path.unlink()
        assert read_png_map(path) is pixels
        assert image_size(path) == (6, 10) and read_image(str(path)).shape == (3, 6, 10)
        assert read_image(path, upright=True).shape == (3, 6, 10)
    assert files == {str(path): (len(content), hashlib.sha256(content).hexdigest())}
    with pytest.raises(DataError, match="cannot be read"):
        read_png_map(path)


def test_an_array_is_read_from_what_was_kept(tmp_path):
    values = np.random.default_rng(0).normal(size=(200, 300))
    np.save(tmp_path / "a.npy", values.T)  # in Fortran's order
    with read_once():
        assert np.array_equal(read_npy(tmp_path / "a.npy"), values.T)


def test_nothing_is_kept_outside(path):
    first = read_png_map(path)
    assert read_png_map(path) is not first
    with read_once():
        read_png_map(path)
    Image.fromarray(np.zeros((6, 10), np.uint8)).save(path)
    assert not read_png_map(path).any()
    with read_once() as files:
        assert not read_png_map(path).any()
    assert len(files) == 1


def test_a_damaged_file_has_a_digest_too(path):
    path.write_bytes(path.read_bytes()[:-30])
    with read_once() as files:
        for _ in range(2):
            with pytest.raises(DataError, match="a.png: damaged or truncated"):
                read_png_map(path)
    assert files[str(path)][0] == path.stat().st_size


def test_large_files_are_not_kept(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT", path.stat().st_size - 1)
    with read_once() as files:
        read_png_map(path)
        path.unlink()
        with pytest.raises(DataError, match="cannot be read"):
            image_size(path)
    assert files == {}
