"""Weighting of tasks: formulas by autograd and by hand, missing tasks, exact resume."""

import copy
import math

import pytest
import torch

from dmtl.train.config import OptimConfig
from dmtl.train.optim import optimizer_for
from dmtl.train.weighting import DynamicAverage, Uncertainty, Weighting, make_weighting
from tests.models.cases import small_model

TASKS = ["semseg", "edge", "depth"]


def alone(tensor):
    """The sum over one process."""


def observe(weighting, **losses):
    """task=(loss, pairs): one call of `observe`."""
    weighting.observe(
        {task: torch.tensor(float(loss)) for task, (loss, _) in losses.items()},
        {task: pairs for task, (_, pairs) in losses.items()},
    )


def scales(weighting, tasks=TASKS) -> list[float]:
    with torch.no_grad():
        return [float(weighting.scale(task)) for task in tasks]


@pytest.mark.parametrize(
    ("name", "cls"), [("fixed", Weighting), ("uncertainty", Uncertainty), ("dwa", DynamicAverage)]
)
def test_all_start_at_one(name, cls):
    weighting = make_weighting(OptimConfig(weighting=name, dwa_temperature=3.0), TASKS)
    assert type(weighting) is cls and getattr(weighting, "temperature", 3.0) == 3.0
    assert scales(weighting) == [1.0] * 3
    with torch.no_grad():
        assert [float(weighting.penalty(task)) for task in TASKS] == [0.0] * 3


def test_fixed_keeps_nothing():
    weighting = make_weighting(OptimConfig(), TASKS)
    observe(weighting, edge=(3.0, 2))
    weighting.merge(alone)
    weighting.end_epoch(alone)
    assert weighting.state_dict() == {} and scales(weighting) == [1.0] * 3
    assert 1.5 * weighting.scale("edge") + weighting.penalty("edge") == 1.5


# uncertainty


def total(weighting, losses: dict[str, list[float]]):
    """The mean over pairs of scale * loss + penalty, by task, summed."""
    return sum(
        (weighting.scale(t) * torch.tensor(values) + weighting.penalty(t)).mean()
        for t, values in losses.items()
    )


def test_uncertainty_gradient():
    """d / ds (exp(-s) L + s) = 1 - exp(-s) L, for the mean L over the pairs."""
    weighting = Uncertainty(TASKS)
    for task, s in zip(TASKS, (-0.7, 0.0, 1.3), strict=True):
        weighting.log_variance[task].data.fill_(s)
    losses = {"semseg": [2.0, 4.0], "depth": [0.5]}
    value = total(weighting, losses)
    value.backward()
    expected = 3.0 * math.exp(0.7) - 0.7 + 0.5 * math.exp(-1.3) + 1.3
    assert float(value.detach()) == pytest.approx(expected)
    assert weighting.log_variance["semseg"].grad.item() == pytest.approx(1 - 3.0 * math.exp(0.7))
    assert weighting.log_variance["depth"].grad.item() == pytest.approx(1 - 0.5 * math.exp(-1.3))
    assert weighting.log_variance["edge"].grad is None


def test_uncertainty_finds_log_loss():
    weighting = Uncertainty(TASKS)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.02)
    losses = {"semseg": [2.5, 3.5], "edge": [0.04], "depth": [1.0]}
    for _ in range(1500):
        optimizer.zero_grad()
        total(weighting, losses).backward()
        optimizer.step()
    for task, mean in (("semseg", 3.0), ("edge", 0.04), ("depth", 1.0)):
        assert float(weighting.penalty(task).detach()) == pytest.approx(math.log(mean), abs=1e-3)
        assert float(weighting.scale(task).detach()) * mean == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_absent_task_does_not_drift(optimizer):
    """Not even by the momentum of earlier steps or by weight decay."""
    weighting = Uncertainty(TASKS)
    config = OptimConfig(optimizer=optimizer, lr=0.1, weight_decay=0.5)
    adam = optimizer_for(config, small_model(diffusion="none"), weighting.parameters())
    total(weighting, {task: [3.0] for task in TASKS}).backward()
    adam.step()
    before = {task: float(weighting.penalty(task).detach()) for task in TASKS}
    assert all(value > 0 for value in before.values())
    for _ in range(3):
        adam.zero_grad()
        total(weighting, {"edge": [3.0]}).backward()
        adam.step()
    after = {task: float(weighting.penalty(task).detach()) for task in TASKS}
    assert {t: v for t, v in after.items() if t != "edge"} == {t: v for t, v in before.items() if t != "edge"}
    assert after["edge"] > before["edge"] + 0.2


def test_uncertainty_state():
    weighting, again = Uncertainty(TASKS), Uncertainty(TASKS)
    weighting.log_variance["edge"].data.fill_(0.75)
    again.load_state_dict(weighting.state_dict())
    assert float(again.penalty("edge").detach()) == 0.75
    assert all(p.shape == (1,) for p in again.parameters())


# dynamic weight average


def softmax_by_hand(ratios, temperature=2.0):
    powers = [math.exp(r / temperature) for r in ratios]
    return [len(ratios) * p / sum(powers) for p in powers]


def test_dwa_by_hand():
    """Four epochs of three tasks; depth has no label in the third, and two batches lack something."""
    weighting = DynamicAverage(TASKS, temperature=2.0)
    observe(weighting, semseg=(8.0, 4), edge=(1.0, 1), depth=(6.0, 2))
    observe(weighting, semseg=(4.0, 2), edge=(1.0, 3))  # means 2, 0.5, 3
    assert scales(weighting) == [1.0] * 3
    weighting.end_epoch(alone)
    assert scales(weighting) == pytest.approx([1.0] * 3)
    observe(weighting, semseg=(3.0, 3), edge=(2.0, 4), depth=(2.25, 1))  # means 1, 0.5, 2.25
    assert scales(weighting) == pytest.approx([1.0] * 3)
    weighting.end_epoch(alone)
    assert scales(weighting) == pytest.approx(softmax_by_hand([1 / 2, 1.0, 2.25 / 3]))
    observe(weighting, semseg=(1.5, 2), edge=(1.0, 4))  # means 0.75, 0.25, depth keeps 2.25
    weighting.end_epoch(alone)
    assert scales(weighting) == pytest.approx(softmax_by_hand([0.75, 0.5, 1.0]))
    observe(weighting, semseg=(0.75, 1), edge=(0.5, 1), depth=(4.5, 4))  # means 0.75, 0.5, 1.125
    weighting.end_epoch(alone)
    assert scales(weighting) == pytest.approx(softmax_by_hand([1.0, 2.0, 0.5]))
    assert sum(scales(weighting)) == pytest.approx(3.0)


def test_dwa_task_that_comes_late():
    """Without two means the ratio is 1."""
    weighting = DynamicAverage(TASKS)
    for epoch, losses in enumerate([(4.0, None), (2.0, None), (1.0, 5.0), (1.0, 2.5)]):
        observe(weighting, **{t: (v, 1) for t, v in zip(TASKS, losses, strict=False) if v is not None})
        weighting.end_epoch(alone)
        ratios = ([1.0, 1.0], [0.5, 1.0], [0.5, 1.0], [1.0, 0.5])[epoch]
        assert scales(weighting) == pytest.approx(softmax_by_hand([*ratios, 1.0]))


def test_dwa_temperature():
    """Hot: all the same. Cold: the task that falls slowest takes everything."""
    for temperature, expected in ((1e6, [1.0, 1.0]), (1e-3, [0.0, 2.0])):
        weighting = DynamicAverage(TASKS[:2], temperature)
        for epoch in range(2):
            observe(weighting, semseg=(1.0 - 0.5 * epoch, 1), edge=(1.0 - 0.1 * epoch, 1))
            weighting.end_epoch(alone)
        assert scales(weighting, TASKS[:2]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_dwa_leaves_out_what_is_not_finite(bad):
    weighting, clean = DynamicAverage(TASKS), DynamicAverage(TASKS)
    for _ in range(2):
        for w in (weighting, clean):
            observe(w, semseg=(2.0, 1), edge=(3.0, 2), depth=(1.0, 1))
        observe(weighting, semseg=(bad, 5), edge=(bad, 1))
        for w in (weighting, clean):
            w.end_epoch(alone)
    assert all(torch.equal(a, b) for a, b in zip(weighting.buffers(), clean.buffers(), strict=True))


def test_dwa_with_losses_of_zero():
    """A task that is solved neither divides by zero nor takes the others' weight."""
    weighting = DynamicAverage(TASKS[:2])
    for _ in range(3):
        observe(weighting, semseg=(0.0, 1), edge=(1.0, 1))
        weighting.end_epoch(alone)
    assert scales(weighting, TASKS[:2]) == [1.0, 1.0]


def played(weighting, first: int, last: int):
    """Batches `first` to `last` of a run with three batches in an epoch."""
    for number in range(first, last):
        g = torch.Generator().manual_seed(number)
        losses = torch.rand(3, generator=g)
        weighting.observe(
            {t: loss for t, loss in zip(TASKS, losses, strict=True) if loss > 0.2},
            {t: 1 + number % 3 for t, loss in zip(TASKS, losses, strict=True) if loss > 0.2},
        )
        if number % 3 == 2:
            weighting.end_epoch(alone)
    return weighting


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("stop", [1, 3, 7, 8, 11])
def test_dwa_resumes_in_the_middle_of_an_epoch(stop, merged):
    saved, again = played(DynamicAverage(TASKS), 0, stop), DynamicAverage(TASKS)
    if merged:
        saved.merge(alone)
    again.load_state_dict(saved.state_dict())
    for end in (stop, stop + 2, stop + 3, 18):
        whole, resumed = played(DynamicAverage(TASKS), 0, end), played(copy.deepcopy(again), stop, end)
        buffers = []
        for weighting in (whole, resumed):
            weighting.merge(alone)
            buffers.append(dict(weighting.named_buffers()))
        torch.testing.assert_close(*buffers, rtol=0, atol=0, equal_nan=True)
    assert len({*scales(whole)}) == 3


def test_dwa_over_processes():
    """Two processes with other batches weigh as one that saw them all, merged halfway or not."""
    one, two = DynamicAverage(TASKS), [DynamicAverage(TASKS) for _ in range(2)]

    def together(name):
        """Runs a method on both, whose reduce adds the tensor of the other."""
        sums = sum(w.own for w in two)
        for w in two:
            getattr(w, name)(lambda tensor: tensor.copy_(sums))

    for epoch in range(3):
        for batch in range(4):
            losses = {"semseg": (2.0 ** -(epoch * batch), 2), "edge": (epoch + batch, 1 + epoch)}
            if batch != 2:
                losses["depth"] = (1.0 + epoch % 2, 1)
            observe(one, **losses)
            observe(two[batch % 2], **losses)
            if batch == epoch:
                together("merge")
                torch.testing.assert_close(*(w.state_dict() for w in two), rtol=0, atol=0, equal_nan=True)
                assert not two[0].own.any()
        one.end_epoch(alone)
        together("end_epoch")
        assert scales(two[0]) == scales(two[1]) == pytest.approx(scales(one), rel=1e-6)
    assert scales(one)[1] > 1.1


def test_dwa_never_reads_the_device():
    """A tensor on "meta" has no value to read: whatever waits for one raises."""
    weighting = DynamicAverage(TASKS).to("meta")
    loss = torch.empty((), device="meta")
    weighting.observe(dict.fromkeys(TASKS, loss), dict.fromkeys(TASKS, 2))
    weighting.observe({"edge": loss}, {"edge": torch.empty((), dtype=torch.int64, device="meta")})
    weighting.end_epoch(alone)
    assert weighting.scale("edge").device.type == "meta"
    with pytest.raises(RuntimeError):
        bool(loss)


def test_scales_keep_the_losses_dtype():
    for name in ("uncertainty", "dwa"):
        weighting = make_weighting(OptimConfig(weighting=name), TASKS)
        losses = torch.rand(3)
        value = weighting.scale("edge") * losses + weighting.penalty("edge")
        assert value.dtype == torch.float32 and torch.equal(value, losses)
        assert (weighting.scale("edge") * losses.sum()).dtype == torch.float32
