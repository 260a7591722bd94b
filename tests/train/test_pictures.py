"""Sheets of validation images: what stands where, and that looking changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmtl.data.loading.transforms import normalise
from dmtl.diffusion import CounterNoise
from dmtl.models import ModelConfig, create_model
from dmtl.tasks.palette import GREY
from dmtl.tasks.sheet import GAP, LEGEND_LINE, LEGEND_LINES, LINE, sheet
from dmtl.train.pictures import colour_scale, validation_pictures
from dmtl.train.setup import model_for, open_data


def place(picture: np.ndarray, row: int, column: int, side: int = 32) -> np.ndarray:
    """One picture of a sheet whose captions are narrower than 120 pixels."""
    x, y = GAP + column * (120 + GAP), row * (side + LINE) + LINE
    return picture[y : y + side, x : x + side]


@pytest.fixture
def setup(config_for):
    config = config_for(data={"labels": "full"})
    data = open_data(config.data)
    return model_for(config, data.tasks), data.val


@pytest.mark.parametrize("diffusion", ["feature", "none"])
def test_a_row_a_task_with_label_and_maps_beside_the_image(setup, diffusion, config_for):
    model, val = setup
    if diffusion == "none":
        model = model_for(config_for(model={"diffusion": "none"}), model.tasks)
    sheets = validation_pictures(model.eval(), val, 2)
    assert list(sheets) == ["validation/i8", "validation/i9"]
    picture, sample = sheets["validation/i9"], val.read(1)
    kinds = ["final"] if diffusion == "none" else ["initial", "final"]
    columns, rows = 2 + len(kinds), len(model.tasks)
    assert picture.dtype == np.uint8
    assert picture.shape == (rows * (32 + LINE) + GAP, columns * (120 + GAP) + GAP, 3)
    assert (place(picture, 0, 0) == sample.image.permute(1, 2, 0).numpy()).all()
    assert (place(picture, 1, 0) == 255).all()  # the image stands there once
    with torch.inference_mode():
        out = model(normalise(sample.image)[None], noise=CounterNoise(0, torch.tensor([1])))
    for row, (name, task) in enumerate(model.tasks.items()):
        scale = task.value_range(sample.labels[name]) if task.kind == "scalar" else None
        assert (place(picture, row, 1) == task.label_picture(sample.labels[name], scale)).all()
        for column, kind in enumerate(kinds, 2):
            map_HW = task.decode(getattr(out, kind)[name])[0]
            assert (place(picture, row, column) == task.picture(map_HW, scale)).all(), (name, kind)


def test_looking_changes_neither_mode_nor_weights_nor_random_numbers(setup):
    model, val = setup
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (validation_pictures(model, val, 1, tasks=["heat", "edge"]) for _ in range(2))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    [one], [other] = first.values(), second.values()
    assert (one == other).all() and one.shape[0] == 2 * (32 + LINE) + GAP
    assert all(p.grad is None for p in model.parameters())


def test_a_missing_label_is_grey_and_the_map_sets_the_scale(setup, monkeypatch):
    model, val = setup
    real = type(val).read

    def without_heat(self, index, tasks=None):
        sample = real(self, index, tasks)
        sample.labels.pop("heat", None)
        return sample

    monkeypatch.setattr(type(val), "read", without_heat)
    [picture] = validation_pictures(model, val, 1, tasks=["heat"]).values()
    assert (place(picture, 0, 1) == GREY).all() and np.ptp(place(picture, 0, 3)) > 0
    heat, map_HW = model.tasks["heat"], torch.linspace(2, 3, 64).view(8, 8)
    assert colour_scale(heat, None, map_HW) == heat.value_range(map_HW[None])
    assert colour_scale(model.tasks["edge"], None, map_HW) is None


def test_a_model_without_a_common_task_gives_nothing(setup):
    model = create_model(
        ModelConfig(
            tasks=[{"name": "depth"}], width=16, backbone_width=4, heads=2, blocks=1, decoder_blocks=1
        )
    )
    assert validation_pictures(model, setup[1], 2) == {}


def test_a_sheet_reduces_what_is_large_and_leaves_places_empty():
    red = np.full((840, 420, 3), (255, 0, 0), np.uint8)
    whole = sheet([("a", red), ("gap", None), ("b", red)], columns=2)
    assert whole.shape == (2 * (420 + LINE) + GAP, 2 * (210 + GAP) + GAP, 3)
    assert (whole[LINE : LINE + 420, GAP : GAP + 210] == (255, 0, 0)).all()
    assert (whole[: 420 + LINE, 2 * GAP + 210 :] == 255).all()


def test_a_sheet_has_legends_below_its_pictures_on_at_most_two_lines():
    red = np.full((100, 200, 3), (255, 0, 0), np.uint8)
    legend = [(f"class {i}", (0, 9 * i, 200)) for i in range(20)]
    few, many = (sheet([("a", red), ("b", red)], legends={"b": legend[:n]}) for n in (2, 20))
    assert (
        few.shape == many.shape == (100 + LINE + LEGEND_LINES * LEGEND_LINE + GAP, 2 * (200 + GAP) + GAP, 3)
    )
    left, right = np.split(many[LINE + 100 :], [200 + 2 * GAP], axis=1)
    assert (left == 255).all() and (right[:, 200:] == 255).all()
    shown = [(right == colour).all(-1).any() for _, colour in legend]
    assert all(shown[:4]) and not any(shown[8:])
    below = few[LINE + 100 + LEGEND_LINE + 3 :]
    assert (below == 255).all()


def test_tensorboard_gets_them_at_every_evaluation(config_for):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from dmtl.train.trainer import Trainer

    config = config_for(log={"tensorboard": True, "pictures": 1})
    Trainer(config).fit()
    events = EventAccumulator(f"{config.out}/tensorboard", size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["validation/i8"]
    assert [event.step for event in events.Images("validation/i8")] == [3, 6]
