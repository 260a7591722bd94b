"""Statistics of labels against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dmtl.data.folder.dataset import Folder
from dmtl.data.folder.statistics import measure
from tests.data.conftest import HEIGHT, WIDTH, arrays


@pytest.mark.parametrize("workers", [0, 2])
def test_shares_and_ranges(folder, workers):
    """Over a, b and c/d; `a` lacks depth and `b` lacks semseg."""
    found = measure(Folder(folder, "train"), workers=workers)
    assert found.images == 3 and found.sizes == {(HEIGHT, WIDTH): 3} and found.errors == []
    ids = np.concatenate([arrays(0)["semseg"], arrays(2)["semseg"]])
    semseg = found.tasks["semseg"]
    assert (semseg.labels, semseg.pixels, semseg.unknown) == (2, ids.size, int((ids == 255).sum()))
    assert semseg.counts.tolist() == [int((ids == i).sum()) for i in range(3)]
    assert semseg.present.tolist() == [2, 2, 2] and semseg.known == ids.size - semseg.unknown
    edge = np.stack([arrays(n)["edge"] for n in range(3)])
    assert found.tasks["edge"].counts.tolist() == [int((edge == 0).sum()), int((edge == 1).sum())]
    steps = np.stack([arrays(n)["depth"] for n in (1, 2)])
    depth = found.tasks["depth"]
    assert depth.unknown == int((steps == 0).sum())
    assert depth.low == pytest.approx(steps[steps > 0].min() * 0.01)
    assert depth.high == pytest.approx(steps.max() * 0.01)
    assert np.median(depth.values) == pytest.approx(np.median(steps[steps > 0]) * 0.01, rel=0.1)
    normals = found.tasks["normals"]
    assert normals.values.shape[1] == 3 and len(normals.values) >= 512
    assert np.allclose(np.linalg.norm(normals.values, axis=1), 1, atol=1e-5)


def test_what_cannot_be_read_is_reported_and_left_out(folder):
    (folder / "images" / "b.png").write_bytes(b"damaged")
    for id in ("a", "c/d"):
        (folder / "semseg" / f"{id}.png").unlink()
    found = measure(Folder(folder, "train"))
    assert found.images == 2 and len(found.errors) == 1 and "images/b.png" in found.errors[0]
    assert found.tasks["semseg"].labels == 0 and found.tasks["semseg"].known == 0
    assert measure(Folder(folder, "train"), [0]).images == 1
