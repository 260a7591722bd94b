"""map_loss beyond the generic tests: `Task.loss` of upsampled logits for every kind of task, drawn shapes and
layouts, rows without labels, values that are not finite, what is kept for the backward, bad arguments."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dmtl.ops
from dmtl.ops.map_loss import KINDS
from tests.tasks.cases import TASKS, label_of

from .maps import LAYOUTS, drawn_map, rounding
from .tools import DEVICE, DTYPES, backend_params, missing

pytestmark = pytest.mark.filterwarnings("ignore:(invalid|All-NaN):RuntimeWarning:triton")  # the interpreter
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
each_backend = pytest.mark.parametrize("backend", backend_params(op="map_loss"))


def backend_and_task(*quick: str):
    """Every backend with every task. Triton's interpreter takes seconds for what the others do in
    milliseconds: `make test` has it compute these tasks only."""
    cases = []
    for backend in backend_params(op="map_loss"):
        (name,) = backend.values
        for task in TASKS:
            slow = [pytest.mark.slow] if name == "triton" and task not in quick else []
            cases.append(pytest.param(name, TASKS[task], id=f"{name}-{task}", marks=[*backend.marks, *slow]))
    return pytest.mark.parametrize(("backend", "task"), cases)


def composed(task, logits, label, factor=8):
    """The loss as training composes it from whole tensors, in float64."""
    frame = [factor * side for side in logits.shape[2:]]
    z = F.interpolate(logits.double(), frame, mode="bilinear", align_corners=False)
    return task.loss(z[..., : label.shape[2], : label.shape[3]], label)


def both(function, logits, incoming):
    """(loss, gradient of the logits) for the incoming gradient [n]."""
    logits = logits.detach().requires_grad_()
    loss = function(logits)
    return loss.detach(), torch.autograd.grad(loss, logits, incoming.to(loss.dtype))[0]


def check(backend, task, logits, label, factor=8):
    incoming = torch.linspace(-1, 2, len(logits), device=logits.device)
    with dmtl.ops.use_backend(map_loss=backend):
        loss, grad = both(
            lambda x: dmtl.ops.map_loss(x, label, factor=factor, **task.loss_kind), logits, incoming
        )
    true_loss, true_grad = both(lambda x: composed(task, x, label, factor), logits.double(), incoming)
    assert loss.shape == (len(logits),) and loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-6)
    assert grad.dtype == logits.dtype and grad.shape == logits.shape
    if grad.numel():
        largest = float(true_grad.abs().amax())
        bound = (
            2 * rounding(logits.dtype, backend) * largest + 1e-5 * largest + 1e-7
        )  # 1e-7: subnormal float16
        assert float((grad.double() - true_grad).abs().amax()) <= bound


@backend_and_task("semseg", "edge", "normals", "depth")  # one of each kind
def test_against_the_tasks_loss(backend, task):
    rows, frames = (1, ((27, 33),)) if backend == "triton" else (3, ((27, 33), (32, 40), (1, 40)))
    logits = 2 * torch.randn(rows, task.channels, 4, 5, device=DEVICE)
    for height, width in frames:
        check(backend, task, logits, label_of(task, rows, height, width).to(DEVICE))
        label = label_of(task, rows, (height + 1) // 2, 11).to(DEVICE)
        check(backend, task, logits[..., :3], label, factor=4)


@each_task
def test_float64(task):
    logits, label = torch.randn(2, task.channels, 2, 3).double(), label_of(task, 2, 15, 20)
    incoming = torch.tensor([0.5, -2.0])
    loss, grad = both(lambda x: dmtl.ops.map_loss(x, label, **task.loss_kind), logits, incoming)
    true_loss, true_grad = both(lambda x: composed(task, x, label), logits, incoming)
    torch.testing.assert_close(
        loss, true_loss, rtol=1e-7, atol=1e-12
    )  # the task rounds its weights to float32
    torch.testing.assert_close(grad, true_grad, rtol=1e-7, atol=1e-12)
    x = logits[:, :, :1, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dmtl.ops.map_loss(x, label[..., :5, :9], **task.loss_kind), x)


LABEL_DTYPES = (torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float16)


@st.composite
def cases(draw, dtypes, largest_side: int):
    task = draw(st.sampled_from(list(TASKS.values())))
    h, w = (draw(st.integers(1, largest_side)) for _ in "hw")
    n, seed = draw(st.integers(1, 3)), draw(st.integers(0, 99))
    shape = (n, task.channels, h, w)
    logits = 2 * drawn_map(shape, draw(st.sampled_from(dtypes)), draw(st.sampled_from(LAYOUTS)), seed)
    label = label_of(task, n, draw(st.integers(1, 8 * h)), draw(st.integers(1, 8 * w)), seed + 1000)
    if task.kind in ("classes", "binary"):
        label = label.to(draw(st.sampled_from(LABEL_DTYPES)))
    if draw(st.booleans()):
        label = label.transpose(2, 3).contiguous().transpose(2, 3)
    return task, logits, label.to(DEVICE)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@given(case=cases(DTYPES, largest_side=19))
@settings(max_examples=100)
def test_drawn_shapes(backend, case):
    check(backend, *case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("triton"))
@given(case=cases((torch.float32, torch.float16), largest_side=5))
@settings(max_examples=15)
def test_drawn_shapes_triton(backend, case):
    check(backend, *case)


@backend_and_task()
def test_nothing_is_labelled(backend, task):
    """Rows without a valid pixel have loss 0 and gradient 0 exactly, whatever their logits; others keep
    theirs."""
    label = label_of(task, 3, 16, 13).float()
    label[1] = task.ignore
    label[2, :, ::2], label[2, :, 1::2] = math.nan, math.inf
    label = label.to(DEVICE)
    logits = torch.randn(3, task.channels, 2, 2, device=DEVICE)
    alone = logits[:1].clone()
    logits[1, 0, 0, 0], logits[2] = math.inf, math.nan
    with dmtl.ops.use_backend(map_loss=backend):
        loss, grad = both(
            lambda x: dmtl.ops.map_loss(x, label, **task.loss_kind), logits, torch.ones(3, device=DEVICE)
        )
        expected = dmtl.ops.map_loss(alone, label[:1], **task.loss_kind)
    assert loss[1:].tolist() == [0.0, 0.0] and not grad[1:].any()
    assert torch.equal(loss[:1], expected) and grad[0].isfinite().all() and grad[0].any()


@backend_and_task("edge")
def test_ignored_pixels_take_no_part(backend, task):
    """Logits whose every pixel is ignored have gradient 0 and may hold anything."""
    label = label_of(task, 1, 32, 32).float()
    label[..., 8:] = math.nan
    logits = torch.randn(1, task.channels, 4, 4, device=DEVICE)
    other = logits.clone()
    other[..., 2:] = math.nan
    with dmtl.ops.use_backend(map_loss=backend):
        for x in (logits, other):
            incoming = torch.ones(1, device=DEVICE)
            loss, grad = both(lambda x: dmtl.ops.map_loss(x, label.to(DEVICE), **task.loss_kind), x, incoming)
            assert loss.isfinite().all() and not grad[..., 2:].any() and grad[..., :2].isfinite().all()


@backend_and_task("edge")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite(backend, task, value):
    label = label_of(task, 2, 16, 16).to(DEVICE)
    for channel in range(min(task.channels, 3)):
        logits = torch.randn(2, task.channels, 2, 2, device=DEVICE)
        logits[1, channel, 1, 0] = value
        with dmtl.ops.use_backend(map_loss=backend):
            loss = dmtl.ops.map_loss(logits, label, **task.loss_kind)
        assert loss.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("backend", backend_params(op="map_loss", slow="triton"))
def test_large_margins(backend):
    """No overflow, and small losses keep their digits."""
    margins = torch.tensor([-200.0, -90.0, -20.0, -5.0, 5.0, 20.0, 90.0, 200.0], device=DEVICE).reshape(
        -1, 1, 1, 1
    )
    label = torch.ones(8, 1, 3, 3, device=DEVICE)
    logits = torch.cat([torch.zeros_like(margins), margins], 1)
    expected = F.softplus(-margins.double().flatten(), threshold=1000)
    with dmtl.ops.use_backend(map_loss=backend):
        calls = [
            dmtl.ops.map_loss(margins, label, kind="logistic", ignore=255),
            dmtl.ops.map_loss(logits, label, kind="logistic", ignore=255),
        ]
        classes = dmtl.ops.map_loss(logits, label, kind="cross_entropy", ignore=255)
    for loss in calls:
        torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-37)
    torch.testing.assert_close(classes.double(), expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("backend", backend_params(op="map_loss", slow="triton"))
def test_label_values(backend):
    """Ids out of range count as ignored, fractions are cut off; more than one half is positive; a vector of
    zeros has no meaning, nor have labels of 0 and less where only positive ones have any."""
    logits = torch.randn(1, 3, 1, 1, device=DEVICE)
    log_p = logits.flatten().log_softmax(0)

    def loss(x, *values, kind, **options):
        label = torch.tensor(values, device=DEVICE).reshape(1, KINDS[kind][1], 1, -1)
        return dmtl.ops.map_loss(x, label, kind=kind, **(dict(ignore=255) | options))[0]

    with dmtl.ops.use_backend(map_loss=backend):
        ids = loss(logits, 3, -1, 1, 200, 1000, kind="cross_entropy")
        cut = loss(logits, 2.75, -0.5, 3.0, 255.0, math.nan, kind="cross_entropy")
        other = loss(logits, 0, 1, 2, 7, kind="cross_entropy", ignore=1)
        half = loss(logits[:, :1], 0.5, 0.25, kind="logistic", negative_weight=3)
        vector = loss(logits, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, kind="unit")
        depth = loss(logits[:, :1], -1.0, 0.0, 2.0, kind="absolute", positive=True)
        heat = loss(logits[:, :1], -1.0, 0.0, kind="absolute")
    torch.testing.assert_close(ids, -log_p[1])
    torch.testing.assert_close(cut, -log_p[2])
    torch.testing.assert_close(other, -(log_p[0] + log_p[2]) / 2)
    x = logits[0, 0, 0, 0]
    torch.testing.assert_close(half, 3 * F.softplus(x))
    unit = F.normalize(logits.flatten(), dim=0)
    torch.testing.assert_close(vector, (unit - torch.tensor([1.0, 0.0, 0.0], device=DEVICE)).abs().sum())
    torch.testing.assert_close(depth, (x - 2).abs())
    torch.testing.assert_close(heat, ((x + 1).abs() + x.abs()) / 2)


@each_backend
def test_vanishing_vectors(backend):
    """Shorter than 1e-4, a vector is not scaled to length 1, and its gradient is finite."""
    logits = torch.tensor([0.0, 3e-5, 0.0], device=DEVICE).reshape(1, 3, 1, 1)
    label = torch.tensor([1.0, 0.0, 0.0], device=DEVICE).reshape(1, 3, 1, 1)
    with dmtl.ops.use_backend(map_loss=backend):
        call = lambda x: dmtl.ops.map_loss(x, label, kind="unit", ignore=255)  # noqa: E731
        loss, grad = both(call, logits, torch.ones(1, device=DEVICE))
    torch.testing.assert_close(loss, torch.tensor([1.3], device=DEVICE))
    torch.testing.assert_close(grad.flatten(), torch.tensor([-1e4, 1e4, 0.0], device=DEVICE))


@pytest.mark.parametrize("backend", backend_params(op="map_loss"))
def test_more_channels(backend):
    """Sixty-four on every backend; more are left to the reference where a kernel does not hold them."""
    task = dmtl.tasks.make_task("land", "classes", classes=64)
    check(backend, task, torch.randn(1, 64, 2, 2, device=DEVICE), label_of(task, 1, 13, 16).to(DEVICE))
    many = torch.randn(1, 300, 1, 1, device=DEVICE)
    label = torch.full((1, 1, 8, 8), 299, device=DEVICE)
    loss = dmtl.ops.map_loss(many, label, kind="cross_entropy", ignore=-1)
    torch.testing.assert_close(loss[0], -many.flatten().log_softmax(0)[299])


@pytest.mark.skipif(bool(missing("cpu")), reason=missing("cpu"))
@each_task
def test_threads_and_instruction_sets(task):
    """The same bits where a call is large enough for several threads."""
    from dmtl.runtime import native

    core, threads = native.core(), torch.get_num_threads()
    best = core.isa()
    logits, label = 2 * torch.randn(2, task.channels, 16, 17), label_of(task, 2, 125, 136)
    found = []
    try:
        for isa in core.isas():
            for count in (1, 2, 3):
                core.use_isa(isa)
                torch.set_num_threads(count)
                with dmtl.ops.use_backend(map_loss="cpu"):
                    call = lambda x: dmtl.ops.map_loss(x, label, **task.loss_kind)  # noqa: E731
                    found.append(both(call, logits, torch.ones(2)))
    finally:
        core.use_isa(best)
        torch.set_num_threads(threads)
    for loss, grad in found[1:]:
        assert torch.equal(loss, found[0][0]) and torch.equal(grad, found[0][1])


def test_no_rows():
    for backend in ("reference", "cpu"):
        with dmtl.ops.use_backend(map_loss=backend):
            x, label = torch.zeros(0, 1, 2, 2, requires_grad=True), torch.zeros(0, 1, 16, 9)
            loss = dmtl.ops.map_loss(x, label, kind="absolute", ignore=0)
            assert loss.shape == (0,) and torch.autograd.grad(loss.sum(), x)[0].shape == x.shape


def test_keeps_nothing_of_the_frames_size():
    """Saved for the backward: the logits as they are, the label as it is, two integers a row."""
    logits = torch.randn(2, 21, 8, 8, requires_grad=True)
    label = torch.randint(0, 21, (2, 1, 64, 64), dtype=torch.uint8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        dmtl.ops.map_loss(logits, label, kind="cross_entropy", ignore=255)
    assert sorted(x.untyped_storage().nbytes() for x in saved) == [16, label.nbytes, logits.nbytes]
    assert {x.data_ptr() for x in saved} >= {logits.data_ptr(), label.data_ptr()}


GOOD = dict(logits=torch.zeros(2, 3, 2, 4), label=torch.zeros(2, 1, 16, 32), kind="cross_entropy", ignore=255)
BAD = [
    (dict(logits=torch.zeros(2, 3, 2, 4).int()), TypeError, "logits must be float32, .*, got int32"),
    (
        dict(logits=torch.zeros(3, 2, 4)),
        ValueError,
        r"logits must be of shape \[n, C, h, w\] .*, got \[3, 2, 4\]",
    ),
    (dict(logits=torch.zeros(2, 3, 0, 4)), ValueError, r"logits must be of shape .*, got \[2, 3, 0, 4\]"),
    (dict(label=[1]), TypeError, "label must be a tensor, got list"),
    (dict(label=torch.zeros(2, 1, 16, 32).cfloat()), TypeError, "label must be real, got complex64"),
    (
        dict(label=torch.zeros(2, 1, 17, 32)),
        ValueError,
        r"label must be of shape \[2, 1, H, W\] .*, got \[2, 1, 17, 32\]",
    ),
    (dict(label=torch.zeros(2, 3, 16, 32)), ValueError, r"label must be of shape .*, got \[2, 3, 16, 32\]"),
    (dict(label=torch.zeros(1, 1, 16, 32)), ValueError, r"label must be of shape .*, got \[1, 1, 16, 32\]"),
    (dict(label=torch.zeros(2, 1, 16, 32, device="meta")), ValueError, "label must be on cpu, got meta"),
    (
        dict(kind="median"),
        ValueError,
        "kind must be one of cross_entropy, logistic, unit, absolute, got median",
    ),
    (dict(kind="logistic"), ValueError, "logits must be of 1 or 2 channels for kind logistic, got 3"),
    (dict(kind="absolute"), ValueError, "logits must be of 1 channels for kind absolute, got 3"),
    (dict(ignore="none"), TypeError, "ignore must be a number, got str"),
    (dict(ignore=math.nan), ValueError, "ignore must be finite, got nan"),
    (dict(negative_weight=-1), ValueError, "negative_weight must be finite and at least 0, got -1"),
    (dict(balanced=1), TypeError, "balanced must be a bool, got int"),
    (dict(log=True), ValueError, "log must be False for kind cross_entropy, got True"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^map_loss: {message}"):
        dmtl.ops.map_loss(**(GOOD | change))
