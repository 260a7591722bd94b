"""Decoding, geometry of values, pictures."""

import numpy as np
import pytest
import torch

from dmtl.tasks import make_task
from dmtl.tasks.palette import EMBER, GREY, SPECTRUM, apply_scale, class_palette
from tests.tasks.cases import TASKS, ignored, label_of, logits_of

each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def decoded_label(task, label_KHW):
    return label_KHW if task.kind == "unit_vector" else label_KHW[0]


@each_task
def test_decoded_maps(task):
    logits = logits_of(task)
    map = task.decode(logits)
    if task.kind == "classes":
        assert map.dtype == torch.int64
        assert map.tolist() == logits.numpy().argmax(1).tolist()
    elif task.name == "sal":
        torch.testing.assert_close(map, logits.softmax(1)[:, 1])
    elif task.kind == "binary":
        torch.testing.assert_close(map, 1 / (1 + (-logits[:, 0]).exp()))
    elif task.kind == "unit_vector":
        torch.testing.assert_close(map.norm(dim=1), torch.ones(3, 5, 7))
        torch.testing.assert_close(map * logits.norm(dim=1, keepdim=True), logits)
    else:
        torch.testing.assert_close(map, logits[:, 0].exp() if task.log else logits[:, 0])
    assert task.decode(logits.bfloat16()).dtype == map.dtype
    assert map.shape == ((3, 3, 5, 7) if task.kind == "unit_vector" else (3, 5, 7))


@each_task
def test_flip_twice_is_nothing(task):
    label = label_of(task)[0]
    flipped = task.flip(label)
    assert torch.equal(task.flip(flipped), label) and flipped.dtype == label.dtype
    if task.kind == "unit_vector":
        known = ~ignored()[0].flip(-1)[0]
        mirrored = label.flip(-1)
        assert torch.equal(flipped[0][known], -mirrored[0][known])
        assert torch.equal(flipped[1:], mirrored[1:])
        assert (flipped[:, ~known] == task.ignore).all()
    else:
        assert torch.equal(flipped, label.flip(-1))


@each_task
def test_zoom(task):
    label = label_of(task)[0]
    zoomed = task.zoom(label, 2.0)
    if task.name in ("depth", "range", "disparity"):
        known = ~ignored()[0]
        assert torch.equal(zoomed[known], label[known] * 2 if task.name == "disparity" else label[known] / 2)
        assert (zoomed[~known] == task.ignore).all()
    else:
        assert torch.equal(zoomed, label)
    assert zoomed.dtype == label.dtype
    for factor in (0, -1, float("nan"), "2"):
        with pytest.raises(ValueError, match=rf"^{task.name}\.zoom: factor must be a positive number, got"):
            task.zoom(label, factor)


@each_task
def test_geometry_rejects_batches(task):
    expected = rf"\[{task.label_channels}, H, W\]"
    with pytest.raises(ValueError, match=rf"^{task.name}\.flip: label_KHW must be .*{expected}, got"):
        task.flip(label_of(task))


@each_task
def test_pictures(task):
    map = task.decode(logits_of(task))[0]
    picture = task.picture(map)
    assert picture.dtype == np.uint8 and picture.shape == (5, 7, 3)
    np.testing.assert_array_equal(task.picture(map.numpy()), picture)

    label = label_of(task)[0]
    picture = task.label_picture(label)
    assert picture.dtype == np.uint8 and picture.shape == (5, 7, 3)
    unknown = ignored()[0, 0].numpy()
    assert (picture[unknown] == 128).all()
    np.testing.assert_array_equal(task.label_picture(label.numpy()), picture)
    # The same value has the same colour in a map and in a label, given the same scale.
    scale = task.value_range(label)
    as_map = decoded_label(task, label)
    as_map = as_map.long() if task.kind == "classes" else as_map.float()
    expected = task.picture(as_map, value_range=scale)
    np.testing.assert_array_equal(task.label_picture(label, value_range=scale)[~unknown], expected[~unknown])


@each_task
def test_picture_of_nothing_known_is_grey(task):
    label = torch.full_like(label_of(task)[0], task.ignore)
    assert (task.label_picture(label) == 128).all()


@each_task
def test_picture_errors(task):
    map = task.decode(logits_of(task))
    with pytest.raises(ValueError, match=rf"^{task.name}\.picture: map must have . dimensions, got"):
        task.picture(map)
    with pytest.raises(TypeError, match=r"\.label_picture: label_KHW must be a tensor or an array, got str"):
        task.label_picture("label")


@pytest.mark.parametrize(("task", "near", "far"), [("depth", 1.0, 10.0), ("disparity", 10.0, 1.0)])
def test_near_is_warm_and_far_is_cold(task, near, far):
    picture = TASKS[task].picture(torch.tensor([[near, far]]), value_range=(1, 10))
    assert picture[0].tolist() == [SPECTRUM[-1].round().tolist(), SPECTRUM[0].round().tolist()]


def test_inverse_distances_are_positive_and_distance_times_inverse_is_kept_by_zoom():
    inverse, distance = make_task("depth", distance=False, inverse=True, ignore=255), make_task("depth")
    label = torch.tensor([[[0.25, 2.0, 0.0, -1.0, 255.0, float("nan")]]])
    assert inverse.valid(label)[0, 0].tolist() == [True, True, False, False, False, False]
    assert inverse.zoom(label, 1.5)[0, 0, :5].tolist() == [0.375, 3.0, 0.0, -1.0, 255.0]
    product = inverse.zoom(label, 1.7)[0, 0, :2] * distance.zoom(1 / label, 1.7)[0, 0, :2]
    torch.testing.assert_close(product, torch.ones(2))


def test_the_score_is_the_main_figure_and_stands_first():
    for score in ("rmse", "abs_err"):
        task = make_task("depth", score=score)
        metric = task.new_metric()
        metric.update(torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[[2.0, 2.0]]]]))
        figures = metric.compute()
        assert task.primary == score == next(iter(figures)) and not task.higher_is_better
        assert figures["abs_err"] == 2 and figures["rmse"] == pytest.approx(5**0.5)


def test_fixed_range():
    task = TASKS["heat"]
    assert task.value_range(label_of(task)[0]) == (-5, 5)
    picture = task.picture(np.array([[-5.0, 5.0, -9.0, np.nan]], np.float32))
    assert (picture[0, 0] == picture[0, 2]).all() and (picture[0, 0] != picture[0, 1]).any()
    assert (picture[0, 3] == GREY).all()


def test_probability_scale_brightens():
    colours = apply_scale(EMBER, np.linspace(0, 1, 50)).astype(int).sum(-1)
    assert (np.diff(colours) >= 0).all() and colours[-1] > colours[0] + 500


@pytest.mark.parametrize("count", [2, 19, 40, 150])
def test_palette_colours_differ(count):
    colours = class_palette(tuple(f"class {i}" for i in range(count)))
    assert colours.shape == (count, 3) and len(np.unique(colours, axis=0)) == count
    distance = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=-1) + 1e3 * np.eye(count)
    assert distance.min() > (60 if count <= 19 else 8)


def test_palette_knows_familiar_things():
    sky, twin, other = class_palette(("Sky", "sky", "quux"))
    assert sky[2] > sky[0] and (sky != twin).any() and (sky != other).any()


def test_edge_is_thin():
    assert TASKS["edge"].thin and not TASKS["sal"].thin
    assert make_task("crack", "binary", thin=True).thin


def test_legends_show_the_colours_of_the_pictures():
    sky, road = make_task("semseg", classes=["sky", "road"]).legend()
    assert (sky[0], road[0]) == ("sky", "road")
    assert tuple(make_task("semseg", classes=["sky", "road"]).picture(np.array([[1]]))[0, 0]) == road[1]
    near, far = TASKS["depth"].legend()
    assert (near[0], far[0]) == ("near", "far")
    inverse = make_task("depth", distance=False, inverse=True).legend()
    assert inverse == [("far", far[1]), ("near", near[1])]
    assert [word for word, _ in TASKS["sal"].legend()] == ["probability 0", "1"]
    assert TASKS["normals"].legend() == []


def test_the_legend_of_one_picture_has_what_occurs_in_it():
    task = make_task("semseg", classes=["sky", "road", "tree"])
    sky, _, tree = task.legend()
    assert task.picture_legend(torch.tensor([[2, 2], [0, 2]])) == [tree, sky]
    depth = make_task("depth", low=1.0, high=5.25)
    assert [word for word, _ in depth.picture_legend(torch.ones(4, 4))] == ["near 1 m", "far 5.25 m"]
    height = make_task("height", kind="scalar")
    assert [word for word, _ in height.picture_legend(torch.tensor([[-2.0, -2.0]]))] == ["low -2", "high -2"]
    assert TASKS["sal"].picture_legend(torch.rand(2, 2)) == TASKS["sal"].legend()
    assert TASKS["normals"].picture_legend(torch.rand(3, 2, 2)) == []
