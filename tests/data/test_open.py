import subprocess
import sys

import pytest

import dmtl.data
from dmtl.data import open_dataset
from dmtl.errors import DataError


def test_opens_a_folder_with_options(folder):
    data = open_dataset(folder, "train", tasks=["edge", "semseg"], size=(12, 16), count=2)
    assert data.ids == ["a", "b"] and list(data.tasks) == ["edge", "semseg"]
    assert data.read(0).size == (12, 16)
    assert len(open_dataset(str(folder), "train")) == 3


def test_unknown_name_says_what_is_known():
    with pytest.raises(
        DataError, match="nowhere: no such data set, expected 'scenes' or a folder with images/"
    ):
        open_dataset("nowhere", "train")


def test_count_must_be_positive(folder):
    with pytest.raises(DataError, match="count must be at least 1, got 0"):
        open_dataset(folder, "train", count=0)


def test_every_public_name_exists():
    for name in set(dmtl.data.__all__) - {"DATASETS", "Scenes"}:
        assert getattr(dmtl.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dmtl.data.nothing  # noqa: B018


def test_importing_is_light():
    heavy = ("PIL", "yaml", "dmtl.tasks", "dmtl.data.folder.dataset")
    code = f"import sys, dmtl.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
