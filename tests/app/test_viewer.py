"""What the page shows is what `dmtl predict` writes."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.app import viewer as module
from dmtl.app.viewer import Options, Viewer, value_text
from dmtl.errors import DataError
from dmtl.models import create_model
from dmtl.predict.predictor import Predictor
from dmtl.tasks import make_task
from dmtl.tasks.palette import heat

STEPS = Options(3, "ddim")
SAMPLES = Options(2, "ancestral", 3)


@pytest.fixture(scope="module")
def viewer(model):
    return Viewer(model)


def test_the_last_step_is_the_prediction(viewer, model, photo):
    """With the chosen steps and sampler; earlier stages are other maps."""
    found = viewer.analyse(photo, STEPS)
    assert found.captions == ["initial map", "step 1", "step 2", "step 3, final"]
    expected = Predictor(model, steps=3, sampler="ddim")(photo)
    last = viewer.maps(found, 3)
    assert last.keys() == expected.keys() == viewer.tasks.keys()
    for name, map in last.items():
        torch.testing.assert_close(map, expected[name], rtol=1e-3, atol=1e-4)
    assert not any(torch.allclose(viewer.maps(found, k)["depth"], last["depth"]) for k in range(3))


def test_the_mean_of_samples_is_the_prediction(viewer, model, photo):
    found = viewer.analyse(photo, SAMPLES)
    assert found.captions == ["initial map", "step 1", "step 2, final", "mean of 3 samples"]
    expected = Predictor(model, steps=2, sampler="ancestral", samples=3)(photo)
    for name, map in viewer.maps(found, 3).items():
        torch.testing.assert_close(map, expected[name], rtol=1e-4, atol=1e-5)
        assert found.averaged.uncertainty[name].shape == (70, 100)


def test_pictures(viewer, photo):
    """In the colours of the task, whose scale is the same at all stages; uncertainty over them."""
    found = viewer.analyse(photo, SAMPLES)
    for stage in range(4):
        maps, pictures = viewer.maps(found, stage), viewer.pictures(found, stage, 0)
        for name, task in viewer.tasks.items():
            assert np.array_equal(pictures[name], task.picture(maps[name], found.scales[name]))
    unsure, _ = heat(found.averaged.uncertainty["depth"].numpy())
    assert np.array_equal(viewer.pictures(found, 3, 1.0)["depth"], unsure)
    half = viewer.pictures(found, 3, 0.5)["depth"].astype(int)
    assert abs(half - (pictures["depth"].astype(int) + unsure) / 2).max() <= 1


def test_values_of_a_pixel(viewer, photo):
    found = viewer.analyse(photo, SAMPLES)
    rows = viewer.values(found, 1, 99, 3)
    maps = viewer.maps(found, 1)
    assert [row[0] for row in rows] == ["pixel", *viewer.tasks] and rows[0][1] == "x 99, y 3"
    assert rows[1][1] == viewer.tasks["semseg"].label_names[maps["semseg"][3, 99]]
    assert rows[1][2].endswith("nats") and rows[2][2].endswith("m²") and rows[3][2].endswith("degrees")
    assert float(rows[2][1].removesuffix(" m")) == pytest.approx(float(maps["depth"][3, 99]), rel=1e-2)
    assert not viewer.values(found, 1, 100, 3) and not viewer.values(found, 1, 0, 70)
    assert [row[2] for row in viewer.values(viewer.analyse(photo, STEPS), 0, 0, 0)] == [""] * 5


def test_value_texts():
    assert value_text(make_task("semseg", classes=["a", "b"]), torch.tensor(1)) == "b"
    assert value_text(make_task("depth"), torch.tensor(2.3456)) == "2.35 m"
    assert value_text(make_task("normals"), torch.tensor([0.6, 0.0, -0.8])) == "0.6, 0, -0.8"
    assert value_text(make_task("edge"), torch.tensor(0.5)) == "0.5"


def test_files(viewer, model, photo, tmp_path):
    """Byte for byte those of `dmtl predict`."""
    path = viewer.save(viewer.analyse(photo, SAMPLES), tmp_path)
    assert path.name == "street-maps.zip" and path.parent.parent == tmp_path
    assert {entry.name for entry in tmp_path.iterdir()} == {
        path.parent.name,
        photo.name,
    }  # nothing else is left
    predictor = Predictor(model, steps=2, sampler="ancestral", samples=3)
    predictor.predict_files([photo], tmp_path / "maps")
    expected = {p.relative_to(tmp_path / "maps").as_posix(): p for p in (tmp_path / "maps").rglob("*.png")}
    with zipfile.ZipFile(path) as files:
        names = {name for name in files.namelist() if not name.endswith("/")}
        assert names == {*expected, "maps.json"} and "uncertainty/depth/street.png" in names
        assert all(files.read(name) == file.read_bytes() for name, file in expected.items())


def test_a_large_photo_is_shown_smaller(viewer, photo, tmp_path, monkeypatch):
    """Its files have its own size, and the network saw what it saw for the page."""
    monkeypatch.setattr(module, "MOST_PIXELS", 2000)
    found = viewer.analyse(photo, STEPS)
    assert found.reduced == 2 and tuple(found.image.shape) == (3, 35, 50)
    monkeypatch.setattr(module, "MOST_PIXELS", 800)
    found = viewer.analyse(photo, STEPS)
    assert found.reduced == 3 and tuple(found.image.shape) == (3, 24, 34)
    assert viewer.maps(found, 3)["depth"].shape == (24, 34)
    assert viewer.values(found, 3, 10, 20)[0][1] == "x 30, y 60"
    with zipfile.ZipFile(viewer.save(found, tmp_path)) as files:
        index = json.loads(files.read("maps.json"))
        assert index["downscale"] == 3
        reading = {"offset": 0.0, "scale": 0.001} | index["images"][0].get("reading", {}).get("depth", {})
        with Image.open(files.open("depth/street.png")) as depth:
            assert depth.size == (100, 70)
            metres = reading["offset"] + reading["scale"] * np.asarray(depth)
    shown = viewer.maps(found, 3)["depth"].numpy()
    assert abs(metres[1:69:3, 1:99:3] - shown[:23, :33]).max() < 0.05 * np.ptp(shown)


def test_what_cannot_be_predicted(viewer, config, photo, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nothing.jpg"):
        viewer.analyse(tmp_path / "nothing.jpg", STEPS)
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    with pytest.raises(DataError, match="broken.jpg"):
        viewer.analyse(tmp_path / "broken.jpg", STEPS)
    broken = create_model(config)
    broken.initial.embed.weight.data.fill_(float("nan"))
    with pytest.raises(DataError, match="semseg: the model's output is not finite"):
        Viewer(broken).analyse(photo, STEPS)

    def exhausted(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(viewer, "_analyse", exhausted)
    with pytest.raises(DataError, match="not enough memory for 100x70 pixels"):
        viewer.analyse(photo, STEPS)


def test_a_model_without_a_chain(config, photo):
    viewer = Viewer(create_model(dataclasses.replace(config, diffusion="none")))
    found = viewer.analyse(photo, Options(2, "ancestral", 4))
    assert found.captions == ["final map"] and found.averaged is None
    assert viewer.pictures(found, 0, 0.5)["depth"].shape == (70, 100, 3)
