"""Folders of maps: what is written is what is read, and what other programs write is read as documented."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.data.loading.batch import Batch
from dmtl.errors import DataError
from dmtl.evaluation.saved_maps import MapWriter, SavedMaps, read_map
from dmtl.predict.maps import encode_map
from tests.data.files import png, tiff
from tests.predict.conftest import TASKS

SIZES = {"a": (5, 7), "sub/b": (6, 4)}
FRAME = (8, 9)


def batch_and_maps(seed=0):
    """Two images in the middle of a frame, and maps of every kind over the whole of it."""
    g = torch.Generator().manual_seed(seed)
    batch = Batch(
        ids=list(SIZES),
        index=torch.arange(2),
        image=torch.zeros(2, 3, *FRAME),
        labels={},
        present={},
        valid_size=list(SIZES.values()),
        valid_at=[((FRAME[0] - h) // 2, (FRAME[1] - w) // 2) for h, w in SIZES.values()],
    )
    shape = (2, *FRAME)
    vectors = torch.nn.functional.normalize(torch.randn((2, 3, *FRAME), generator=g), dim=1)
    return batch, {
        "semseg": torch.randint(3, shape, generator=g),
        "sal": torch.rand(shape, generator=g),
        "normals": vectors,
        "edge": torch.rand(shape, generator=g),
        "depth": 10 * torch.rand(shape, generator=g),
        "height": torch.randn(shape, generator=g) * 100,
    }


def inner(map, row):
    """A map without its padding."""
    (h, w), top, left = (
        list(SIZES.values())[row],
        *((f - n) // 2 for f, n in zip(FRAME, list(SIZES.values())[row])),
    )
    return map[row][..., top : top + h, left : left + w]


def saved(folder, floats=False):
    batch, maps = batch_and_maps()
    writer = MapWriter(folder, TASKS, {"model": "toy"}, floats=floats)
    writer.add(batch, maps)
    writer.write_index()
    return batch, maps


def test_what_is_written(tmp_path):
    """Read with other means: Pillow and NumPy."""
    _, maps = saved(tmp_path / "out")
    for row, id in enumerate(SIZES):
        ids, edge, sal = (
            np.asarray(Image.open(tmp_path / "out" / t / f"{id}.png")) for t in ("semseg", "edge", "sal")
        )
        np.testing.assert_array_equal(ids, inner(maps["semseg"], row))
        np.testing.assert_array_equal(
            sal, np.uint8(np.rint(255 * inner(maps["sal"], row).numpy())), strict=True
        )
        np.testing.assert_array_equal(edge, np.uint8(255 * inner(maps["edge"], row).numpy()), strict=True)
        vectors = np.load(tmp_path / "out" / "normals" / f"{id}.npy")
        np.testing.assert_array_equal(np.moveaxis(vectors, 2, 0), inner(maps["normals"], row), strict=True)
        for task in ("depth", "height"):
            stored = np.load(tmp_path / "out" / task / f"{id}.npy")
            np.testing.assert_array_equal(stored, inner(maps[task], row), strict=True)
    index = json.loads((tmp_path / "out" / "maps.json").read_text())
    assert index["model"] == "toy" and set(index["tasks"]) == set(TASKS)
    assert index["images"] == [{"name": id, "size": list(size)} for id, size in SIZES.items()]
    assert "255" in index["tasks"]["edge"]["png"] and "float32" in index["tasks"]["normals"]["npy"]


@pytest.mark.parametrize("floats", [False, True])
def test_there_and_back(tmp_path, floats):
    """To the bit; probabilities in 8 bits within 1/510, where they are cut off 1/255."""
    within = {} if floats else {"sal": 1 / 510 + 1e-7, "edge": 1 / 255}
    batch, maps = saved(tmp_path / "out", floats)
    source = SavedMaps(tmp_path / "out", TASKS, dict.fromkeys(TASKS, SIZES))
    back = source.maps_of(batch, list(TASKS))
    for task in TASKS:
        assert back[task].dtype == maps[task].dtype and back[task].shape == maps[task].shape
        for row in range(2):
            difference = (inner(back[task], row) - inner(maps[task], row)).abs().max()
            assert difference <= within.get(task, 0), task


def test_an_earlier_output_is_replaced(tmp_path):
    """Nothing of the other format is left that would be read instead."""
    saved(tmp_path / "out", floats=True)
    saved(tmp_path / "out", floats=False)
    assert sorted(p.name for p in (tmp_path / "out" / "sal").rglob("*.*")) == ["a.png", "b.png"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"mine: holds other files"):
        MapWriter(tmp_path / "mine", TASKS, {})


VECTOR = np.random.default_rng(0).normal(size=(5, 7, 3))
CODES = np.random.default_rng(1).integers(0, 256, (5, 7))


@pytest.mark.parametrize(
    ("task", "stored", "expected"),
    [
        ("semseg", (CODES % 3).astype(np.uint8), CODES % 3),
        ("semseg", (CODES % 3).astype(np.uint16), CODES % 3),
        ("semseg", np.int64(CODES % 3), CODES % 3),
        ("edge", CODES.astype(np.uint8), CODES / 255),
        ("edge", (CODES * 257).astype(np.uint16), CODES / 255),
        ("edge", CODES / 255, CODES / 255),
        ("edge", np.float16(CODES / 255)[..., None], np.float16(CODES / 255)),
        ("edge", CODES > 99, CODES > 99),
        ("normals", VECTOR, np.moveaxis(VECTOR, 2, 0)),
        ("normals", np.float16(np.moveaxis(VECTOR, 2, 0)), np.moveaxis(np.float16(VECTOR), 2, 0)),
        ("normals", np.stack([CODES] * 3, 2).astype(np.uint8), np.stack([CODES] * 3) * 2 / 255 - 1),
        ("depth", np.float32(CODES), CODES),
        ("depth", np.int32(CODES)[None], CODES),
        ("depth", CODES.astype(np.uint16), CODES * 0.5 + 2),
    ],
)
def test_maps_of_any_program(tmp_path, task, stored, expected):
    png = stored.dtype in (np.uint8, np.uint16)
    path = tmp_path / ("map.png" if png else "map.npy")
    Image.fromarray(stored).save(path) if png else np.save(path, stored)
    map = read_map(path, TASKS[task], (5, 7), (0.5, 2.0) if task == "depth" else None)
    assert map.dtype == (torch.int64 if task == "semseg" else torch.float32)
    np.testing.assert_allclose(map.numpy(), np.asarray(expected, np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "stored", "message"),
    [
        ("semseg", np.uint8(CODES % 3)[:4], "values of shape [4, 7], expected [5, 7] like the image"),
        ("semseg", np.uint8(np.stack([CODES] * 3, 2)), "values of shape [5, 7, 3], expected [5, 7]"),
        ("semseg", np.uint8(CODES % 5), "value 3, 4, expected class ids from 0 to 2"),
        ("semseg", np.int8(CODES % 3 - 1), "value -1, expected class ids from 0 to 2"),
        ("semseg", np.float32(CODES % 3), "float32 values, expected whole class ids from 0 to 2"),
        ("edge", np.float32(CODES), "expected probabilities as floats from 0 to 1"),
        ("edge", np.int64(CODES), "int64 values from 7 to 250, expected probabilities"),
        ("sal", np.full((5, 7), np.nan), "values are not finite"),
        ("normals", np.float32(CODES), "values of shape [5, 7], expected [5, 7, 3] like the image"),
        ("depth", np.full((5, 7), np.inf), "values are not finite"),
        ("depth", CODES.astype(np.uint16), "expected a .npy of floats, or tasks.depth.scale in maps.json"),
    ],
)
def test_maps_that_do_not_fit_are_named(tmp_path, task, stored, message):
    png = stored.dtype in (np.uint8, np.uint16)
    path = tmp_path / ("map.png" if png else "map.npy")
    Image.fromarray(stored).save(path) if png else np.save(path, stored)
    with pytest.raises(DataError, match=rf"map\.(png|npy): .*{re.escape(message)}"):
        read_map(path, TASKS[task], (5, 7))


def test_damaged_files_are_named(tmp_path):
    saved(tmp_path / "out")
    for name, task in (("semseg/a.png", "semseg"), ("depth/a.npy", "depth")):
        path = tmp_path / "out" / name
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_map(path, TASKS[task], (5, 7))


def test_missing_maps_are_listed(tmp_path):
    saved(tmp_path / "out")
    (tmp_path / "out" / "edge" / "a.png").unlink()
    (tmp_path / "out" / "depth" / "sub" / "b.npy").unlink()
    message = r"out: 2 of 12 maps are missing: edge/a, depth/sub/b, expected <task>/<id>.png or .npy"
    with pytest.raises(DataError, match=message):
        SavedMaps(tmp_path / "out", TASKS, dict.fromkeys(TASKS, SIZES))
    SavedMaps(tmp_path / "out", {"edge": TASKS["edge"]}, {"edge": ["sub/b"]})  # that of `a` is not needed
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        SavedMaps(tmp_path / "nowhere", TASKS, {})


def test_arrays_count_before_pictures(tmp_path):
    """As `dmtl predict --npy` leaves both."""
    batch, _ = saved(tmp_path / "out")
    np.save(tmp_path / "out" / "edge" / "a.npy", np.full((5, 7), 0.25))
    map = SavedMaps(tmp_path / "out", {"edge": TASKS["edge"]}, {"edge": SIZES}).maps_of(batch, ["edge"])
    assert (inner(map["edge"], 0) == 0.25).all() and (inner(map["edge"], 1) != 0.25).any()


def test_scalars_as_predict_writes_them(tmp_path):
    """Distances in millimetres for all images, other numbers with a scale for each."""
    batch, _ = batch_and_maps()
    index = {
        "format": "dmtl maps 1",
        "tasks": {"depth": {"scale": 0.001, "offset": 0.0}, "height": {"png": "..."}},
        "images": [{"name": "a", "reading": {"height": {"scale": 0.5, "offset": -3}}}],
    }
    (tmp_path / "maps.json").write_text(json.dumps(index))
    for task in ("depth", "height"):
        (tmp_path / task).mkdir()
        Image.fromarray(CODES.astype(np.uint16)).save(tmp_path / task / "a.png")
    tasks = {task: TASKS[task] for task in ("depth", "height")}
    maps = SavedMaps(tmp_path, tasks, {task: ["a"] for task in tasks}).maps_of(batch, tasks)
    np.testing.assert_allclose(inner(maps["depth"], 0), CODES / 1000, rtol=1e-6)
    np.testing.assert_allclose(inner(maps["height"], 0), CODES / 2 - 3, rtol=1e-6)
    assert not maps["depth"][1].any()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"tasks": 3}', '{"images": [{}]}', '{"tasks": {"depth": {"scale": "x"}}}', "[" * 9999],
)
def test_unreadable_index_is_named(tmp_path, text):
    batch, _ = batch_and_maps()
    (tmp_path / "maps.json").write_text(text)
    (tmp_path / "depth").mkdir()
    Image.fromarray(CODES.astype(np.uint16)).save(tmp_path / "depth" / "a.png")
    with pytest.raises(DataError, match=r"maps\.json: "):
        SavedMaps(tmp_path, {"depth": TASKS["depth"]}, {"depth": ["a"]}).maps_of(batch, ["depth"])


MASK = np.uint8(CODES > 128)


def edges(folder, *contents, suffix=".png"):
    """The maps [N, 5, 7] that are read from files of a folder without maps.json."""
    (folder / "edge").mkdir()
    for number, content in enumerate(contents):
        (folder / "edge" / f"{number}{suffix}").write_bytes(content)
    ids = [str(number) for number in range(len(contents))]
    source = SavedMaps(folder, {"edge": TASKS["edge"]}, {"edge": ids})
    batch = Batch(ids=ids, index=torch.arange(len(ids)), image=torch.zeros(len(ids), 3, 5, 7), labels={},
                  present={}, valid_size=[(5, 7)] * len(ids), valid_at=[(0, 0)] * len(ids))  # fmt: skip
    return source.maps_of(batch, ["edge"])["edge"].numpy()


def palette(values):
    image, stream = Image.fromarray(values, "L").convert("P"), io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content", [png(MASK, 1), png(MASK, 2), png(MASK, 8), png(MASK, 16), palette(MASK)], ids=str
)
def test_masks_are_masks(tmp_path, content):
    """An edge of 1 bit, or stored as 0 and 1, does not become 1/255."""
    maps = edges(tmp_path, png(0 * MASK), content)
    assert not maps[0].any() and np.array_equal(maps[1], MASK)


def test_tiff_masks_are_masks(tmp_path):
    assert np.array_equal(edges(tmp_path, tiff(MASK, 1), suffix=".tif")[0], MASK)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_probabilities_of_few_bits(tmp_path, bits):
    """One map with more than 0 and 1 says what the others are."""
    codes, white = CODES % (1 << bits), (1 << bits) - 1
    maps = edges(tmp_path, png(MASK, bits), png(codes, bits))
    np.testing.assert_allclose(maps[0], MASK / white, rtol=1e-6)
    np.testing.assert_allclose(maps[1], codes / white, rtol=1e-6)


def test_palettes_are_no_probabilities(tmp_path):
    with pytest.raises(DataError, match=r"0.png: whole numbers without a unit, expected .*tasks.edge.scale"):
        edges(tmp_path, palette(np.uint8(CODES)))


def test_faint_probabilities_of_ours_stay_faint(tmp_path):
    (tmp_path / "maps.json").write_text(json.dumps({"tasks": {"edge": TASKS["edge"].map_format()}}))
    np.testing.assert_allclose(edges(tmp_path, png(MASK))[0], MASK / 255, rtol=1e-6)


@pytest.mark.parametrize(
    "metres",
    [
        np.linspace(100, 105, 35),  # beyond 16 bits of millimetres
        np.linspace(0, 65.6, 35),
        np.linspace(-2, 3, 35),
        np.linspace(0.004, 0.02, 35),  # an endoscope's
        np.geomspace(1e-3, 1e6, 35),
        np.full(35, 1e5),
        np.linspace(0.7, 9, 35),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_no_distance_is_lost(tmp_path, metres, listed):
    """By its entry in maps.json, and by the PNG alone."""
    map = np.float32(metres.reshape(5, 7))
    content, reading = encode_map(TASKS["depth"], torch.from_numpy(map))
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth/a.png").write_bytes(content)
    image = {"name": "a", "reading": {"depth": reading} if reading and listed else {}}
    index = {"tasks": {"depth": TASKS["depth"].map_format()}, "images": [image]}
    (tmp_path / "maps.json").write_text(json.dumps(index))
    source = SavedMaps(tmp_path, {"depth": TASKS["depth"]}, {"depth": ["a"]})
    found = read_map(source.files["depth"]["a"], TASKS["depth"], (5, 7), source._reading("depth", "a"))
    assert np.abs(found.numpy() - map).max() <= max(0.6e-3 * (map.max() > 1), 0.6 * np.ptp(map) / 65535)
