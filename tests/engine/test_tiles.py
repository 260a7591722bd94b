"""Large images in tiles: they cover, they leave no seam, and they bound the memory."""

import itertools

import pytest
import torch

from dmtl.engine import engine as engine_module
from dmtl.engine.engine import Engine
from dmtl.engine.memory import SHARE, SMALLEST_TILE, largest_tile, peak_bytes
from dmtl.engine.tiles import starts, tiled
from tests.models.cases import small_config, small_model


@pytest.mark.parametrize("side", [64, 96, 256])
@pytest.mark.parametrize("overlap", [32])
def test_tiles_cover(side, overlap):
    for length in range(32, 1500, 32):
        begins = starts(length, side, overlap)
        assert begins[0] == 0 and all(begin % 32 == 0 for begin in begins)
        assert begins[-1] + side == length or (length <= side and begins == [0])
        for a, b in itertools.pairwise(begins):
            assert 0 < b - a <= side - overlap
        assert len(begins) == max(1, -(-(length - overlap) // (side - overlap)))


def test_a_local_prediction_is_reproduced():
    """Tiles of a function of single pixels blend into that function, whatever the cut."""
    image = torch.randn(2, 3, 352, 224)

    def predict(tile):
        small = {"a": tile[:, :2, ::8, ::8], "b": tile[:, 2:, ::8, ::8] * 5}
        return [small, {"a": tile[:, :2, ::4, ::4]}], tile.shape[-1]

    whole, _ = predict(image)
    for side, overlap in ((64, 32), (128, 32), (128, 64), (512, 128)):
        blended, most = tiled(predict, image, side, overlap)
        assert most == min(side, 224)
        for draw, expected in zip(blended, whole, strict=True):
            for task in expected:
                torch.testing.assert_close(draw[task], expected[task])


def test_seams_are_invisible():
    """Between tiles that disagree by a constant the map goes from one to the other in steps of the ramp."""
    image, side, overlap, number = torch.zeros(1, 3, 64, 480), 128, 64, []

    def predict(tile):
        number.append(len(number))
        return [
            {"a": torch.full((1, 1, tile.shape[-2] // 8, tile.shape[-1] // 8), float(len(number) % 2))}
        ], 1

    (blended,), _ = tiled(predict, image, side, overlap)
    steps = blended["a"].diff(dim=-1).abs()
    assert len(number) > 4 and float(blended["a"].min()) < 0.1 and float(blended["a"].max()) > 0.9
    assert float(steps.max()) <= 1.5 / (overlap // 8)


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
def test_engine_with_tiles(diffusion):
    model, image = small_model(diffusion=diffusion), torch.randn(2, 3, 150, 410)
    whole, tiles = Engine(model), Engine(model, tile=128)
    assert_equal_where_one_tile_suffices(whole, tiles)
    out, logits = tiles.maps(image, samples=2), tiles(image)
    for name, task in model.tasks.items():
        assert out.maps[name].shape[-2:] == image.shape[-2:] and bool(out.finite[name])
        torch.testing.assert_close(
            tiles.maps(image).maps[name], task.decode(logits.final[name]), rtol=1e-4, atol=1e-5
        )
    assert bool(out.uncertainty) == (diffusion != "none")
    with_seam = logits.initial["heat"].diff(dim=-1).abs().max()
    assert float(with_seam) <= 1.5 * float(whole(image).initial["heat"].diff(dim=-1).abs().max())


def assert_equal_where_one_tile_suffices(whole: Engine, tiles: Engine) -> None:
    image = torch.randn(1, 3, 128, 96)
    a, b = (e.maps(image).maps for e in (whole, tiles))
    assert all(torch.equal(a[t], b[t]) for t in a)


def test_tiles_come_when_memory_would_not_suffice(monkeypatch):
    model, image = small_model(), torch.randn(1, 3, 600, 600)
    engine, never, seen = Engine(model), Engine(model, tile=0), []
    engine._graphs = None  # every tile is computed by `initial`
    initial = engine.network.initial
    monkeypatch.setattr(
        engine.network, "initial", lambda x, wanted: seen.append(x.shape[-2:]) or initial(x, wanted)
    )
    engine.maps(image)
    assert seen == [(608, 608)]
    enough_for = peak_bytes(model.config, 4, 1, 320, 320) / SHARE
    monkeypatch.setattr(engine_module, "available_bytes", lambda device: int(enough_for) + 1)
    seen.clear()
    engine.maps(image)
    assert set(seen) == {(320, 320)} and len(seen) >= 4
    assert never.maps(image).maps["heat"].shape == (1, 600, 600)


def test_peak_grows_with_what_there_is():
    config = small_config()
    peaks = [peak_bytes(config, 4, 1, side, side) for side in (256, 512, 1024)]
    assert peaks == sorted(peaks) and peaks[2] - peaks[1] == pytest.approx(
        4 * (peaks[1] - peaks[0]), rel=0.01
    )
    assert largest_tile(config, 4, 1, 0) == SMALLEST_TILE
    side = largest_tile(config, 4, 1, peaks[2])
    assert peak_bytes(config, 4, 1, side, side) <= peaks[2] < peak_bytes(config, 4, 1, side + 32, side + 32)
