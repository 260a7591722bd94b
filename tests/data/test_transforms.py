from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmtl.data.base import Sample
from dmtl.data.loading.transforms import (
    HorizontalFlip,
    InFrame,
    Normalise,
    PadTo,
    Photometric,
    RandomScaleCrop,
    Resize,
    colour_matrix,
    eval_transform,
    resize_label,
    train_transform,
)
from dmtl.errors import DataError
from dmtl.tasks import make_task
from tests.data.conftest import Synthetic


def rng(seed=0):
    return np.random.default_rng(seed)


def same(a: Sample, b: Sample) -> bool:
    return (
        torch.equal(a.image, b.image)
        and a.labels.keys() == b.labels.keys()
        and all(torch.equal(a.labels[t], b.labels[t]) for t in a.labels)
    )


@pytest.fixture
def data():
    return Synthetic(sizes=((48, 64),))


def test_two_flips_are_none_for_every_task(data):
    sample, flip = data.read(0), HorizontalFlip(p=1)
    once = flip(sample, data.tasks, rng())
    assert torch.equal(once.image, sample.image.flip(-1)) and torch.equal(
        once.labels["edge"], sample.labels["edge"].flip(-1)
    )
    normals = once.labels["normals"].flip(-1)
    known = (sample.labels["normals"] != 255).all(0)
    assert (
        torch.equal(normals[0][known], -sample.labels["normals"][0][known])
        and (normals[:, ~known] == 255).all()
    )
    assert torch.equal(normals[1:], sample.labels["normals"][1:])
    assert same(flip(once, data.tasks, rng()), sample)
    assert HorizontalFlip(p=0)(sample, data.tasks, rng()) is sample


def test_scale_crop_moves_image_and_labels_together():
    """The image carries its own coordinates, so crop and scale can be read back and compared."""
    task = {"depth": make_task("depth"), "semseg": make_task("semseg", classes=64)}
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    image = torch.stack([4 * y, 3 * x, 0 * x]).to(torch.uint8)
    sample = Sample("s", image, {"semseg": x[None].to(torch.uint8), "depth": torch.full((1, 48, 64), 10.0)})
    for seed in range(20):
        out = RandomScaleCrop((32, 40), (0.8, 2.0))(sample, task, rng(seed))
        factor = rng(seed).uniform(0.8, 2.0)
        assert out.size == (32, 40)
        assert torch.allclose(out.labels["depth"], torch.tensor(10 / factor), rtol=1e-6)
        column = out.image[1, 5].float() / 3
        assert (column - out.labels["semseg"][0, 5].float()).abs().max() <= 1.01
        slope = (column[-3] - column[2]) / (len(column) - 5)
        assert abs(slope - 1 / factor) < 0.05


def test_a_crop_of_a_small_image_is_smaller_and_then_padded(data):
    sample = data.read(0)
    out = RandomScaleCrop((64, 64), (0.5, 0.5))(sample, data.tasks, rng())
    assert out.size == (24, 32)
    out = train_transform((64, 64), scale=(0.5, 0.5))(sample, data.tasks, rng())
    assert out.size == (64, 64) and out.valid_size == (24, 32)
    assert (out.image[:, 24:] == 0).all() and (out.image[:, :, 32:] == 0).all()
    for name, label in out.labels.items():
        ignore = data.tasks[name].ignore
        assert (label[:, 24:] == ignore).all() and (label[:, :, 32:] == ignore).all()


@pytest.mark.parametrize("frame", [(48, 64), (49, 65), (52, 71), (96, 64)])
def test_frame_is_the_published_padding(data, frame):
    """Beside NumPy's padding, half of the margin (rounded down) above and to the left."""
    sample = data.read(0)
    out = eval_transform(frame=frame)(sample, data.tasks, rng())
    top, left = (frame[0] - 48) // 2, (frame[1] - 64) // 2
    around = ((0, 0), (top, frame[0] - 48 - top), (left, frame[1] - 64 - left))
    mean, std = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    image = np.pad((sample.image.numpy() / np.float32(255) - mean) / std, around)
    np.testing.assert_allclose(out.image.numpy(), image, atol=2e-6)
    assert (out.image.numpy() == 0)[:, image[0] == 0].all() and out.size == frame
    for task, label in sample.labels.items():
        expected = np.pad(label.numpy(), around, constant_values=data.tasks[task].ignore)
        np.testing.assert_array_equal(out.labels[task].numpy(), expected, strict=True)
    assert (out.valid_size, out.valid_at) == ((48, 64), (top, left))


def test_frame_refuses_what_does_not_fit(data):
    sample = replace(data.read(0), id="2008_000002")
    for frame in ((47, 64), (48, 63)):
        with pytest.raises(DataError, match="^2008_000002: image of 64x48 pixels, expected at most .* frame"):
            InFrame(frame)(sample, data.tasks)
    with pytest.raises(ValueError, match="InFrame: size"):
        InFrame((0, 5))


def test_no_class_fills_the_crop_where_it_can_be_helped():
    tasks = {"semseg": make_task("semseg", classes=3)}
    label = torch.zeros(1, 60, 60, dtype=torch.uint8)
    label[:, :, 40:] = 1
    sample = Sample("s", torch.zeros(3, 60, 60, dtype=torch.uint8), {"semseg": label})
    shares = {}
    for name, limit in (("free", 1.0), ("balanced", 0.75)):
        crop = RandomScaleCrop((20, 20), (1.0, 1.0), max_ratio=limit)
        crops = [crop(sample, tasks, rng(seed)).labels["semseg"] for seed in range(100)]
        shares[name] = sum(c.float().mean().item() < 0.25 or c.float().mean().item() > 0.75 for c in crops)
    assert shares["free"] > 60 and shares["balanced"] < 20


def test_a_hidden_semseg_label_does_not_steer_the_crop(data):
    """With the label the draws differ for some seed; without it the first window is taken always."""
    crop, with_label = RandomScaleCrop((20, 20), (1.0, 1.0), max_ratio=0.34), data.read(0)
    without = replace(with_label, labels={})
    free = RandomScaleCrop((20, 20), (1.0, 1.0), max_ratio=1.0)
    for seed in range(10):
        assert torch.equal(
            crop(without, data.tasks, rng(seed)).image, free(with_label, data.tasks, rng(seed)).image
        )
    assert any(
        not torch.equal(
            crop(with_label, data.tasks, rng(s)).image, free(with_label, data.tasks, rng(s)).image
        )
        for s in range(10)
    )


def test_a_crop_without_a_person_has_no_label_of_human_parts():
    task = make_task("human_parts")
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[:, :8, :8], label[:, 60, 60] = 3, 255
    seen = []
    for seed in range(20):
        sample = Sample("0", torch.zeros(3, 64, 64, dtype=torch.uint8), {"human_parts": label})
        cut = RandomScaleCrop((16, 16), (1, 1))(sample, {"human_parts": task}, np.random.default_rng(seed))
        found = cut.labels["human_parts"]
        seen.append(bool((found == 3).any()))
        assert seen[-1] or (found == 255).all()
    assert any(seen) and not all(seen)


def test_resize_takes_nearest_labels_and_keeps_values(data):
    sample = data.read(0)
    small = Resize((24, 32))(sample, data.tasks)
    assert small.size == (24, 32) and small.image.dtype == torch.uint8
    for name in ("semseg", "normals", "depth"):
        expected = F.interpolate(sample.labels[name][None].float(), (24, 32), mode="nearest-exact")[0]
        assert torch.equal(small.labels[name].float(), expected)
        assert small.labels[name].dtype == sample.labels[name].dtype
    assert torch.allclose(
        small.image.float(),
        F.interpolate(sample.image[None].float(), (24, 32), mode="bilinear", antialias=True)[0],
        atol=1.01,
    )
    assert Resize((48, 64))(sample, data.tasks) is sample


@pytest.mark.parametrize("size", [(20, 20), (13, 17), (31, 39), (7, 40)])
@pytest.mark.parametrize("name", ["edge", "cracks"])
def test_thin_lines_survive_shrinking_and_stay_thin(name, size):
    thin, plain = (make_task(name, kind="binary", thin=thin) for thin in (True, False))
    label = torch.zeros(1, 40, 40, dtype=torch.uint8)
    label[0, torch.arange(40), torch.arange(40)] = 1  # a diagonal
    label[0, 30] = 1
    label[0, 5:8, 20:30] = 255
    out = resize_label(label, size, thin)
    # Exactly the targets into which a positive falls, each source pixel falling into one target.
    expected = torch.zeros(size, dtype=torch.bool)
    for y, x in label[0].eq(1).nonzero().tolist():
        expected[y * size[0] // 40, x * size[1] // 40] = True
    assert torch.equal(out[0] == 1, expected)
    assert (out[0, 30 * size[0] // 40] == 1).all()
    assert ((out == 1) | (out == resize_label(label, size, plain)) | (out == 0)).all()
    assert expected.sum() > (resize_label(label, size, plain) == 1).sum() or size == (31, 39)


def test_enlarging_thin_labels_is_nearest():
    label = torch.eye(5, dtype=torch.uint8)[None]
    assert torch.equal(
        resize_label(label, (10, 10), make_task("edge"))[0],
        torch.eye(5, dtype=torch.uint8).repeat_interleave(2, 0).repeat_interleave(2, 1),
    )


def test_normalise_and_eval_transform(data):
    sample = data.read(0)
    image = Normalise()(sample).image
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (sample.image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert image.dtype == torch.float32 and torch.allclose(image, expected, atol=1e-5)
    assert same(eval_transform()(sample, data.tasks, rng()), replace(sample, image=image))
    assert eval_transform((24, 32))(sample, data.tasks, rng()).size == (24, 32)


def test_photometric_changes_pixels_within_range_and_no_label(data):
    sample = data.read(0)
    outs = [Photometric()(sample, data.tasks, rng(seed)) for seed in range(40)]
    assert all(o.image.min() >= 0 and o.image.max() <= 255 and o.image.dtype == torch.float32 for o in outs)
    assert all(o.labels is sample.labels for o in outs)
    unchanged = sum(torch.equal(o.image, sample.image.float()) for o in outs)
    assert unchanged < 10
    none = Photometric(brightness=0, contrast=(1, 1), saturation=(1, 1), hue_deg=0)
    assert all((none(sample, data.tasks, rng(s)).image - sample.image).abs().max() < 1e-2 for s in range(5))
    bright = Photometric(brightness=32, contrast=(1, 1), saturation=(1, 1), hue_deg=0)
    grey = Sample("g", torch.full((3, 4, 4), 100, dtype=torch.uint8))
    values = np.array([bright(grey, {}, rng(s)).image.mean().item() for s in range(200)])
    assert values.min() > 67.9 and values.max() < 132.1 and values.min() < 75 and values.max() > 125


def test_colour_matrix_keeps_grey_and_luma():
    for saturation, hue in ((0.5, 0), (1.5, 18), (1.0, -18)):
        matrix = colour_matrix(saturation, hue)
        assert np.allclose(
            matrix @ np.ones(3), 1, atol=1e-3
        )  # the published YIQ coefficients have four digits
        assert np.allclose(np.array([0.299, 0.587, 0.114]) @ matrix, [0.299, 0.587, 0.114], atol=1e-3)
    assert np.allclose(colour_matrix(1, 0), np.eye(3), atol=1e-12)
    assert np.allclose(colour_matrix(0, 0), np.tile([0.299, 0.587, 0.114], (3, 1)), atol=1e-3)
    red_turned = colour_matrix(1, 18) @ [1, 0, 0]
    assert not np.allclose(red_turned, [1, 0, 0], atol=0.05)


def test_a_transform_writes_nothing_and_is_repeatable(data):
    sample = data.read(0)
    before = replace(
        sample, image=sample.image.clone(), labels={k: v.clone() for k, v in sample.labels.items()}
    )
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for seed in range(5):
        transform = train_transform((40, 40))
        assert same(transform(sample, data.tasks, rng(seed)), transform(sample, data.tasks, rng(seed)))
    assert same(sample, before)
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("size", [(30, 30), (64, 96), (7, 5)])
def test_any_size_and_values_stay_legal(data, size):
    for seed in range(15):
        out = train_transform(size)(data.read(seed), data.tasks, rng(seed))
        assert out.size == size and out.image.dtype == torch.float32 and out.image.isfinite().all()
        labels = out.labels
        assert set(labels["semseg"].unique().tolist()) <= {0, 1, 2, 255} and set(
            labels["edge"].unique().tolist()
        ) <= {0, 1, 255}
        known = (labels["normals"] != 255).all(0)
        assert torch.allclose(labels["normals"].norm(dim=0)[known], torch.tensor(1.0), atol=1e-5)


def test_bad_arguments_are_named():
    for call, message in [
        (lambda: RandomScaleCrop((0, 5)), "RandomScaleCrop: size"),
        (lambda: RandomScaleCrop((8, 8), (2, 1)), "scale must"),
        (lambda: RandomScaleCrop((8, 8), max_ratio=0), "max_ratio"),
        (lambda: HorizontalFlip(2), "p must"),
        (lambda: Resize((5,)), "Resize: size"),
        (lambda: PadTo((5.0, 5)), "PadTo: size"),
        (
            lambda: PadTo((2, 2))(Sample("s", torch.zeros(3, 4, 4)), {}),
            "PadTo: sample must be at most 2x2, got 4x4",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
