"""Losses: equal to the published ones, and to what their docstrings say."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmtl.tasks import KNOWN, Depth, make_task
from tests import golden
from tests.tasks.cases import TASKS, ignored, label_of, logits_of


def pooled_loss(task, logits_BCHW, label_BKHW):
    """The loss over all pixels of the batch together, as the published functions pool: one tall sample."""
    tall = [x.transpose(0, 1).flatten(1, 2)[None] for x in (logits_BCHW, label_BKHW)]
    return task.loss(*tall)[0]


each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@pytest.mark.parametrize("name", KNOWN)
def test_golden(golden_dir, name):
    stored = np.load(golden_dir / "losses.npz")
    task = make_task(name)
    draw = golden.rs(f"losses/logit/{name}").standard_normal((2, task.channels, 12, 16))
    logits = torch.from_numpy(((3 if name == "depth" else 2) * draw).astype(np.float32)).requires_grad_()
    if name == "depth":
        label = 10 * golden.rs("losses/label/depth").random_sample((2, 1, 12, 16))
        unknown = golden.rs("losses/ignore/depth").random_sample((2, 1, 12, 16)) < 0.07
        label = torch.from_numpy(np.where(unknown, 255, label).astype(np.float32))
    else:
        label = golden.labels("losses", 2, 12, 16)[name]
    loss = pooled_loss(task, logits, label)
    loss.backward()
    assert loss.item() == pytest.approx(float(stored[f"{name}/loss"]), rel=1e-5)
    expected = torch.from_numpy(stored[f"{name}/grad"])
    assert (logits.grad - expected).norm() < 1e-4 * expected.norm()


def brute_force(task, logits, label) -> float:
    """The loss of one sample [C,H,W], [K,H,W], pixel by pixel in double precision."""
    logits, label = logits.double().numpy(), label.double().numpy()
    pixels = [
        (r, c)
        for r in range(label.shape[1])
        for c in range(label.shape[2])
        if np.isfinite(label[:, r, c]).all() and (label[:, r, c] != task.ignore).all()
    ]
    positives = sum(label[0, r, c] == 1 for r, c in pixels)
    total = 0.0
    for r, c in pixels:
        x, y = logits[:, r, c], label[:, r, c]
        if task.kind == "classes":
            total += math.log(sum(math.exp(v) for v in x)) - x[int(y[0])]
        elif task.name == "sal":
            share = positives / len(pixels)
            p = math.exp(x[1]) / (math.exp(x[0]) + math.exp(x[1]))
            total += -(1 - share) * math.log(p) if y[0] == 1 else -share * math.log(1 - p)
        elif task.kind == "binary":
            p = 1 / (1 + math.exp(-x[0]))
            w_pos, w_neg = (0.95, 0.05) if task.name == "edge" else (task.pos_weight, 1)
            total += -w_pos * math.log(p) if y[0] == 1 else -w_neg * math.log(1 - p)
        elif task.kind == "unit_vector":
            total += np.abs(x / math.sqrt((x**2).sum()) - y).sum()
        else:
            total += abs(x[0] - (math.log(y[0]) if task.log else y[0]))
    return total / max(len(pixels), 1)


@each_task
def test_each_sample_equals_the_formula(task):
    logits, label = logits_of(task), label_of(task)
    expected = [brute_force(task, x, y) for x, y in zip(logits, label, strict=True)]
    loss = task.loss(logits, label)
    assert loss.shape == (3,) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


@each_task
def test_sample_without_labels_is_exactly_zero(task):
    logits, label = logits_of(task).requires_grad_(), label_of(task)
    label[1] = task.ignore
    loss = task.loss(logits, label)
    loss.sum().backward()
    assert loss[1] == 0 and (logits.grad[1] == 0).all()
    assert loss[0] > 0 and logits.grad[0].abs().sum() > 0


@each_task
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_ignored_pixels_take_no_part(task, poison):
    logits, label = logits_of(task), label_of(task).float()
    unknown = ignored()
    poisoned_logits = logits.masked_fill(unknown, poison).requires_grad_()
    logits.requires_grad_()
    clean, dirty = task.loss(logits, label), task.loss(poisoned_logits, label.masked_fill(unknown, poison))
    assert torch.equal(clean, dirty)
    clean.sum().backward()
    dirty.sum().backward()
    assert torch.equal(logits.grad, poisoned_logits.grad)
    assert (logits.grad.masked_select(unknown.expand_as(logits)) == 0).all()


@each_task
def test_extreme_logits_stay_finite(task):
    label = label_of(task)
    values = (0.0,) if task.kind == "unit_vector" else (0.0, 1e4, -1e4)
    for value in values:
        logits = torch.full_like(logits_of(task), value, requires_grad=True)
        loss = task.loss(logits, label)
        loss.sum().backward()
        assert loss.isfinite().all() and logits.grad.isfinite().all()


@each_task
def test_gradient(task):
    logits, label = logits_of(task, 2, 1, 3).double().requires_grad_(), label_of(task, 2, 1, 3)
    assert torch.autograd.gradcheck(lambda x: task.loss(x, label), logits)


@each_task
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_fp32(task, dtype):
    logits, label = logits_of(task).to(dtype), label_of(task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(logits, label)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, task.loss(logits.float(), label))


@each_task
def test_label_dtype_does_not_matter(task):
    logits, label = logits_of(task), label_of(task)
    dtypes = [torch.float64] if label.is_floating_point() else [torch.float32, torch.int64, torch.int16]
    for dtype in dtypes:
        torch.testing.assert_close(task.loss(logits, label.to(dtype)), task.loss(logits, label))


@each_task
def test_compiles_to_one_graph(task):
    logits, label = logits_of(task), label_of(task)
    torch.compiler.reset()  # every task shares `loss`, and a function may be compiled for eight only
    compiled = torch.compile(task.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, label), task.loss(logits, label))


@each_task
def test_does_not_look_at_values(task):
    """A fake tensor has no values: whatever needs one (item, boolean indexing, a branch on data) raises."""
    with FakeTensorMode():
        logits = torch.empty(2, task.channels, 4, 6, requires_grad=True)
        loss = task.loss(logits, torch.empty(2, task.label_channels, 4, 6))
        loss.sum().backward()
        assert loss.shape == (2,) and task.decode(logits).shape[0] == 2


@each_task
def test_empty_batch(task):
    assert task.loss(logits_of(task)[:0], label_of(task)[:0]).shape == (0,)


def test_ids_outside_the_classes_are_ignored():
    task = TASKS["material"]
    logits, label = logits_of(task), label_of(task).int()
    outside = label.masked_fill(label == task.ignore, 7)
    outside[0, 0, 0, 0], label[0, 0, 0, 0] = -1, int(task.ignore)
    assert torch.equal(task.loss(logits, outside), task.loss(logits, label))


def test_vectors_of_length_zero_are_ignored():
    task = TASKS["normals"]
    logits, label = logits_of(task), label_of(task)
    zero = torch.where(label == task.ignore, 0.0, label)
    assert torch.equal(task.loss(logits, zero), task.loss(logits, label))


def test_distances_of_zero_are_ignored():
    task = TASKS["depth"]
    logits, label = logits_of(task), label_of(task)
    assert torch.equal(task.loss(logits, torch.where(label == 255, 0.0, label)), task.loss(logits, label))
    heat = TASKS["heat"]  # any other number may be 0
    assert heat.loss(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)) == 1


@each_task
def test_wrong_arguments_are_named(task):
    logits, label = logits_of(task), label_of(task)
    name = task.name
    with pytest.raises(ValueError, match=rf"{name}\.loss: logits_BCHW must .*\[B, {task.channels}, H, W\]"):
        task.loss(logits.repeat(1, 2, 1, 1), label)
    expected = rf"\[3, {task.label_channels}, 5, 7\]"
    with pytest.raises(ValueError, match=rf"^{name}\.loss: label_BKHW must be a real tensor {expected}, got"):
        task.loss(logits, label[..., :6])
    with pytest.raises(ValueError, match=rf"^{name}\.loss: label_BKHW must be"):
        task.loss(logits, label[:, 0])
    with pytest.raises(TypeError, match=rf"^{name}\.loss: logits_BCHW must be a float.*, got int64"):
        task.loss(logits.long(), label)
    with pytest.raises(TypeError, match=rf"^{name}\.loss: label_BKHW must be a real .*, got complex64"):
        task.loss(logits, label.to(torch.complex64))
    with pytest.raises(TypeError, match=rf"^{name}\.loss: label_BKHW must be .*, got list"):
        task.loss(logits, label.tolist())
    with pytest.raises(ValueError, match=rf"^{name}\.decode: logits_BCHW must be"):
        task.decode(logits[0])
    with pytest.raises(ValueError, match=rf"^{name}\.loss: label_BKHW must be"):
        task.loss(logits, label[:2])


# Losses of maps: from logits at 1/8 of the resolution.


@each_task
@pytest.mark.parametrize("factor", [8, 4])
def test_loss_of_map(task, factor):
    """The loss of the interpolated and cropped logits, and the same gradient."""
    height, width = 3 * factor - 3, 4 * factor
    logits, label = logits_of(task, 2, 3, 4), label_of(task, 2, height, width)
    lows = [logits.clone().requires_grad_() for _ in range(2)]
    frame = (3 * factor, width)
    whole = torch.nn.functional.interpolate(lows[0], frame, mode="bilinear", align_corners=False)
    losses = [task.loss(whole[..., :height, :], label), task.loss_of_map(lows[1], label, factor)]
    torch.testing.assert_close(losses[1], losses[0])
    grads = [torch.autograd.grad(loss.sum(), low)[0] for loss, low in zip(losses, lows, strict=True)]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-7)


def test_a_loss_of_its_own():
    """A subclass that changes the loss is not taken for the task that it came from; one that says how is."""

    class Squared(Depth):
        def _pixel_loss(self, logits_BCHW, label_BKHW, valid_B1HW):
            return (logits_BCHW - label_BKHW).square()

    class Near(Depth):
        def valid(self, label_BKHW):
            return super().valid(label_BKHW) & (label_BKHW < 5)

    class Logarithmic(Squared):
        def _loss_kind(self):
            return {"kind": "absolute", "log": True}

    class Renamed(Depth):
        def new_metric(self):
            return super().new_metric()

    known = dict(kind="absolute", log=False, positive=True, ignore=255.0)
    assert Renamed().loss_kind == Depth().loss_kind == known
    assert Logarithmic(ignore=0).loss_kind == dict(kind="absolute", log=True, ignore=0)
    logits, label = logits_of(Depth(), 2, 2, 2), label_of(Depth(), 2, 13, 16)
    whole = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)[:, :, :13]
    for task in (Squared(), Near()):
        assert task.loss_kind is None
        torch.testing.assert_close(task.loss_of_map(logits, label), task.loss(whole, label))
        half = torch.nn.functional.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
        expected = task.loss(half, label[..., :8, :8])
        torch.testing.assert_close(task.loss_of_map(logits, label[..., :8, :8], 4), expected)
        assert not torch.allclose(task.loss_of_map(logits, label), Depth().loss_of_map(logits, label))


def test_loss_of_map_checks():
    with pytest.raises(ValueError, match=r"^depth.loss_of_map: logits_BCHW must be .* \[B, 1, H, W\], got"):
        Depth().loss_of_map(torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"^map_loss: label must be of shape .*, got \[1, 1, 17, 16\]"):
        Depth().loss_of_map(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 17, 16))
