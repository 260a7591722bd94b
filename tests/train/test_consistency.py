"""Cross-task consistency: the published loss pair by pair, what its gradient reaches, and runs with it.
Several processes: test_distributed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import from_pretrained
from dmtl.tasks import make_task
from dmtl.train.config import OptimConfig
from dmtl.train.consistency import Consistency, cosine_distance, label_map, predicted_map
from dmtl.train.log import RunLog
from dmtl.train.objective import Seen
from dmtl.train.trainer import Trainer
from tests.models.cases import TASKS, small_model
from tests.tasks.cases import label_of
from tests.train.conftest import refuse_readings, without_time
from tests.train.test_step import BATCH, SIZE, batch_of, parameters, same, step_for

NAMES = list(TASKS)
NONE = dict(diffusion="none")


# the loss


def plain_input(task, x: Tensor) -> Tensor:
    """A prediction [1, C, h, w] as probabilities, unit vectors, or values of at most 1."""
    if task.kind == "classes":
        return x.exp() / x.exp().sum(1, keepdim=True)
    if task.kind == "binary":
        return 1 / (1 + (-x).exp())
    if task.kind == "unit_vector":
        return x / x.norm(dim=1, keepdim=True)
    return x / x.abs().max()


def plain_label(task, label: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A label [1, K, H, W] position by position: the mean of the known ones of its 8x8 pixels."""
    depth = task.channels if task.kind == "classes" else label.shape[1]
    map, known = torch.zeros(1, depth, *size).double(), torch.zeros(size, dtype=torch.bool)
    for y, x in itertools.product(*map_ranges(size)):
        values = []
        for pixel in label[0, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten(1).T:
            if (pixel == task.ignore).any() or not pixel.isfinite().all() or (depth == 3 and not pixel.any()):
                continue
            if task.kind == "classes":
                values.append(F.one_hot(pixel[0].long(), depth).double())
            else:
                values.append((pixel > 0.5).double() if task.kind == "binary" else pixel.double())
        if values:
            known[y, x], map[0, :, y, x] = True, torch.stack(values).mean(0)
    if task.kind == "unit_vector":
        map = map / map.norm(dim=1, keepdim=True).clamp(min=1e-12)
    if task.kind == "scalar":
        map = map / map.abs().max().clamp(min=1e-3)
    return map, known


def map_ranges(size):
    return [range(side) for side in size]


def plain_mapping(weights: dict[str, Tensor], task: str, pair: int, x: Tensor, hidden: int) -> Tensor:
    """One map through the mapping network, in float64."""

    def normed(x: Tensor) -> Tensor:
        grouped = x.reshape(8, -1)
        centred = grouped - grouped.mean(1, keepdim=True)
        return (centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)

    def convolved(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    assert x.shape[0] == 1 and hidden % 8 == 0
    x = normed(convolved(x, f"inputs.{task}.0"))
    scale, shift = (weights[f"inputs.{task}.1.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias"))
    x = (x * scale + shift).clamp(min=0)
    for layer in range(2):
        scale, shift = weights["condition"][pair, layer].view(1, hidden, 1, 2).unbind(-1)
        x = normed(convolved(x, f"layers.{layer}"))
        x = (x * scale[..., None] + shift[..., None]).clamp(min=0)
    return convolved(x, "output", padding=0)


def plain_distance(x: Tensor, y: Tensor, known: Tensor) -> Tensor:
    cosines = [
        torch.dot(x[0, :, i, j], y[0, :, i, j]) / (x[0, :, i, j].norm() * y[0, :, i, j].norm())
        for i, j in known.nonzero().tolist()
    ]
    return sum(1 - c for c in cosines) / len(cosines) if cosines else torch.zeros(()).double()


def plain_consistency(consistency, feature, logits, labels, present, hidden: int) -> list[tuple]:
    """(consistency, regulariser) of every pair, one after the other."""
    weights = {name: p.double() for name, p in consistency.mapping.state_dict().items()}
    codes = {pair: i for i, pair in enumerate(itertools.permutations(NAMES, 2))}
    found = []
    for b in range(BATCH):
        for s, t in itertools.permutations(NAMES, 2):
            if present[s][b] or not present[t][b]:
                continue
            label, known = plain_label(TASKS[t], labels[t][b : b + 1], feature.shape[2:])
            prediction = plain_input(TASKS[s], logits[s][b : b + 1].double())
            m_s = plain_mapping(weights, s, codes[s, t], prediction, hidden)
            m_t = plain_mapping(weights, t, codes[s, t], label, hidden)
            f = feature[b : b + 1].double()
            near = plain_distance(m_s, f, known) + plain_distance(m_t, f, known)
            found.append((plain_distance(m_s, m_t, known), near))
    return found


def case(number: int, hidden: int = 16, width: int = 12):
    """Random everything: the loss, its arguments, and a label size that 8 does not divide."""
    generator = torch.Generator().manual_seed(number)
    torch.manual_seed(number)
    consistency = Consistency(small_model(width=width, heads=2, **NONE), hidden)
    with torch.no_grad():
        for p in consistency.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    size, (height, width_px) = (4, 8), (SIZE[0] - 3, SIZE[1] - 5)
    feature = torch.randn(BATCH, width, *size, generator=generator)
    logits = {n: torch.randn(BATCH, t.channels, *size, generator=generator) for n, t in TASKS.items()}
    labels = {n: label_of(t, BATCH, height, width_px, seed=number) for n, t in TASKS.items()}
    return consistency, feature, logits, labels, batch_of(number).present


def losses(consistency, feature, logits, labels, present) -> dict[str, Tensor]:
    batch = dataclasses.replace(batch_of(0), labels=labels, present=present)
    return consistency(Seen(batch, None, feature, logits))


@pytest.mark.parametrize("number", range(6))
def test_the_loss_pair_by_pair(number):
    consistency, feature, logits, labels, present = case(number)
    for name, label in labels.items():  # a position, and for one image all, without a known pixel
        label[:, :, :8, 8:16] = TASKS[name].ignore
        label[0] = TASKS[name].ignore
    found = losses(consistency, feature, logits, labels, present)
    expected = plain_consistency(consistency, feature, logits, labels, present, 16)
    assert len(expected) > 2
    for name, values in zip(("consistency", "consistency_regulariser"), zip(*expected, strict=True)):
        torch.testing.assert_close(found[name].double(), torch.stack(values), rtol=1e-4, atol=1e-5)


def test_masked_cosine():
    """Exact gradients, nothing from pixels without a label, 0 where all lack one."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 5, 2, 4, generator=generator).double() for _ in range(2))
    valid = torch.rand(3, 1, 2, 4, generator=generator) < 0.6
    valid[1] = False
    x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: cosine_distance(x, y, valid), (x, y))
    distance = cosine_distance(F.normalize(x), F.normalize(y), valid)
    cosine = F.cosine_similarity(x, y)
    for row in (0, 2):
        assert float(distance[row].detach()) == pytest.approx(
            float((1 - cosine[row])[valid[row, 0]].mean().detach())
        )
    distance.sum().backward()
    assert distance[1] == 0 and not x.grad[~valid.expand_as(x)].any() and x.grad[0].any()


def test_labels_at_an_eighth():
    """Shares of the known pixels alone; a position is known where one pixel is."""
    ids = torch.full((1, 1, 8, 16), 255.0)
    ids[0, 0, 0, :4] = torch.tensor([2.0, 2, 0, 3])
    map, valid = label_map(TASKS["semseg"], ids, (1, 3))
    assert map[0, :, 0, 0].tolist() == [0.25, 0, 0.5, 0.25] and valid[0, 0].tolist() == [[True, False, False]]
    assert not map[..., 1:].any()
    depth = torch.full((1, 1, 8, 8), 0.0)  # of a distance, 0 says nothing
    depth[..., 3:5] = torch.tensor([4.0, 8.0])
    map, valid = label_map(make_task("depth", "scalar", distance=True), depth.repeat(1, 1, 1, 2), (1, 2))
    assert map.flatten().tolist() == [1, 1] and valid.all()
    map, _ = label_map(TASKS["edge"], torch.eye(8)[None, None], (1, 1))
    assert map.item() == 0.125


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_and_its_label_look_alike(name):
    """Both ways into the mapping network mean the same: of a label that is constant in every 8x8 pixels."""
    task, generator = TASKS[name], torch.Generator().manual_seed(1)
    if task.kind == "classes":
        small = torch.randint(0, task.channels, (2, 1, 3, 5), generator=generator).float()
        logits = 50.0 * F.one_hot(small[:, 0].long(), task.channels).movedim(3, 1)
    elif task.kind == "binary":
        small = (torch.rand(2, 1, 3, 5, generator=generator) < 0.5).float()
        logits = 100 * small - 50
    else:
        small = torch.randn(2, task.label_channels, 3, 5, generator=generator)
        small = F.normalize(small) if task.kind == "unit_vector" else small
        logits = 3 * small
    label, valid = label_map(task, small.repeat_interleave(8, 2).repeat_interleave(8, 3), (3, 5))
    assert valid.all()
    torch.testing.assert_close(predicted_map(task, logits), label, atol=1e-5, rtol=0)


def test_scalars_of_any_unit():
    """A prediction and a label in other units look the same, logarithms or not."""
    generator = torch.Generator().manual_seed(2)
    value = torch.rand(2, 1, 8, 8, generator=generator) + 0.5
    for log in (False, True):
        task = make_task("heat", "scalar", log=log)
        logits = (1000 * value).log() if log else 1000 * value
        expected = value / value.amax((1, 2, 3), keepdim=True)
        torch.testing.assert_close(predicted_map(task, logits), expected, rtol=1e-5, atol=0)


# what reaches what


def gradients(step) -> set[str]:
    return {name for name, p in step.batch_loss.named_parameters() if p.grad is not None and p.grad.any()}


def one_label() -> tuple:
    """A batch whose images have one label each, of two tasks in all."""
    batch = batch_of(0)
    present = {name: torch.zeros(BATCH, dtype=torch.bool) for name in NAMES}
    present["semseg"][:2], present["heat"][2:] = True, True
    labelled = {name: int(mask.sum()) for name, mask in present.items()}
    return dataclasses.replace(batch, present=present, labelled=labelled)


def training(optim: dict = {}, **execution):
    torch.manual_seed(0)
    return step_for(small_model(**NONE).train(), optim=dict(objectives={"mtpsl": 1.0}) | optim, **execution)


def test_the_gradient_reaches_unlabelled_tasks_and_the_mapping():
    without, with_it = training(dict(objectives={})), training()
    for step in (without, with_it):
        step(one_label(), 0)
    reached = gradients(with_it)
    for task in ("normals", "edge"):
        for part in ("decoders", "heads"):
            prefix = f"model.initial.{part}.{task}."
            assert not any(name.startswith(prefix) for name in gradients(without))
            named = {name for name in with_it.batch_loss.state_dict() if name.startswith(prefix)}
            trained = {
                name for name in named if not name.endswith(("running_mean", "running_var", "tracked"))
            }
            assert trained <= reached
    mapping = {
        name for name, _ in with_it.batch_loss.named_parameters() if name.startswith("objectives.mtpsl.")
    }
    assert len(mapping) == 4 * len(NAMES) + 4 + 1 + 2 and mapping <= reached
    groups = {group["name"]: len(group["params"]) for group in with_it.optimizer.param_groups}
    assert "objectives" not in groups  # step_for optimises the model alone


def test_nothing_flows_through_labels_or_the_feature():
    consistency, feature, logits, labels, present = case(3)
    feature.requires_grad_()
    for name in NAMES:
        logits[name].requires_grad_()
    labels["heat"] = labels["heat"].float().requires_grad_()
    found = losses(consistency, feature, logits, labels, present)
    sum(values.sum() for values in found.values()).backward()
    assert feature.grad is None
    for name in NAMES:
        moved = logits[name].grad.flatten(1).any(1)
        some = torch.stack(list(present.values())).any(0)
        assert torch.equal(moved, ~present[name] & some)


def test_ignored_pixels_do_not_matter():
    """Nor do the rows without a label, nor what stands where an image has none."""
    consistency, feature, logits, labels, present = case(4)
    generator = torch.Generator().manual_seed(0)
    for name, label in labels.items():
        label[:, :, 5:20, 3:30] = TASKS[name].ignore
        label[~present[name]] = TASKS[name].ignore
    expected = losses(consistency, feature, logits, labels, present)
    for name, label in labels.items():
        invalid = ~TASKS[name].valid(label).expand_as(label)
        ignore = TASKS[name].ignore
        other = torch.where(torch.rand(label.shape, generator=generator) < 0.5, torch.nan, ignore)
        labels[name] = torch.where(invalid, other, label)
        absent = torch.full_like(label[~present[name]].float(), 7.0)
        labels[name][~present[name]] = absent
    found = losses(consistency, feature, logits, labels, present)
    for name, values in expected.items():
        assert torch.equal(found[name], values) and values.isfinite().all() and values.any()


@pytest.mark.parametrize("labels", ["all", "none"])
def test_no_pair_no_loss(labels):
    """An image with all labels, or without any, has no pair; the step is the baseline's to the bit."""
    batch = one_label()
    on = torch.full((BATCH,), labels == "all")
    present = {name: on.clone() for name in NAMES}
    batch = dataclasses.replace(batch, present=present, labelled={n: int(on.sum()) for n in NAMES})
    states, values = [], []
    for weight in (0.0, 2.0):
        step = training(dict(objectives={"mtpsl": weight}))
        step(batch, 0)
        states.append(parameters(step.batch_loss.model))
        values.append(step.read().values)
    assert same(*states) and values[0]["loss"] == values[1]["loss"]
    assert values[1]["consistency"] == values[1]["consistency_regulariser"] == 0
    assert all(p.grad is None for p in step.batch_loss.objectives.parameters())


def test_it_enters_the_loss_with_its_weights():
    values = []
    for weight in (0.0, 1.0, 3.0):
        step = training(dict(objectives={"mtpsl": weight}))
        step(one_label(), 0)
        values.append(step.read().values)
    base, one, three = (v["loss"] for v in values)
    d, r = (values[1][name] for name in ("consistency", "consistency_regulariser"))
    assert one - base == pytest.approx(d + 0.5 * r, rel=1e-4) and 0 < d < 6 and 0 < r < 12
    assert three - base == pytest.approx(3 * (d + 0.5 * r), rel=1e-4)
    assert "consistency" not in values[0] and values[2]["consistency"] == pytest.approx(d)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_add_up(micro_batch):
    results = []
    for size in (0, micro_batch):
        step = training(dict(freeze_bn=True), micro_batch=size)
        step.batch_loss.model.eval()
        step(batch_of(2), 0)
        results.append((step.read().values, {n: p.grad for n, p in step.batch_loss.named_parameters()}))
    (whole, expected), (divided, found) = results
    assert divided == pytest.approx(whole, rel=1e-4)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5 * float(grad.norm()) + 1e-7)


def test_a_consistency_that_is_not_finite_skips_the_step():
    step, batch = training(), one_label()
    before = parameters(step.batch_loss)
    step.batch_loss.objectives.mtpsl.mapping.output.bias.data[0] = torch.nan
    before |= {
        "objectives.mtpsl.mapping.output.bias": step.batch_loss.objectives.mtpsl.mapping.output.bias.clone()
    }
    step(batch, 0)
    report = step.read()
    assert same(before, parameters(step.batch_loss)) and step.in_a_row == 1
    assert [(s.reason, sorted(s.pairs)) for s in report.skipped] == [("loss", ["heat", "semseg"])]


# runs


def log_of(out) -> list[dict]:
    return without_time(RunLog.read(Path(out) / "log.jsonl"))


def run_for(config_for, name="run", *, optim={}, **options):
    return config_for(name, model=NONE, optim=dict(objectives={"mtpsl": 1.0}, ema=0.9) | optim, **options)


@pytest.mark.parametrize(
    ("model", "tasks", "told"),
    [
        ({}, None, 'optim.objectives.mtpsl needs model.diffusion = "none", got .feature.'),
        (NONE, ["heat"], "optim.objectives.mtpsl needs at least two tasks, got heat"),
    ],
)
def test_where_it_cannot_be(config_for, model, tasks, told):
    with pytest.raises(ConfigError, match=told):
        Trainer(config_for(optim=dict(objectives={"mtpsl": 1.0}), model=model, data=dict(tasks=tasks)))


def test_values_of_its_options():
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="optim.objectives.mtpsl must be at least 0 and finite"):
            OptimConfig(objectives={"mtpsl": weight})
    with pytest.raises(
        ConfigError, match="optim.objectives must be one of mtpsl, got 'mtspl'; did you mean 'mtpsl'"
    ):
        OptimConfig(objectives={"mtspl": 1.0})


def test_a_run(config_for):
    """Logged, learned, and not in the model's folder."""
    config = run_for(
        config_for, optim=dict(steps=20, batch_size=8, warmup=0, clip=1.0), log=dict(eval_every=20)
    )
    Trainer(config).fit()
    rows = [row for row in log_of(config.out) if row["event"] == "train"]
    for name in ("consistency", "consistency_regulariser"):
        first, last = (sum(row[name] for row in part) for part in (rows[:4], rows[-4:]))
        assert 0 < last < first
    model = from_pretrained(Path(config.out) / "model")
    plain = Trainer(config_for("plain", model=NONE)).model
    assert model.state_dict().keys() == plain.state_dict().keys()


class Stopped(Exception):
    pass


def test_resume_is_exact(config_for):
    optim = dict(precision="bf16", weighting="dwa")
    whole, stopped = (run_for(config_for, name, optim=optim) for name in ("whole", "stopped"))
    straight = Trainer(whole)
    straight.fit()

    def stop(done, steps, loss):
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        Trainer(stopped, on_step=stop).fit()
    resumed = Trainer(stopped, resume=True)
    assert resumed.step == 4
    resumed.fit()
    assert log_of(stopped.out) == log_of(whole.out)
    for ours, theirs in ((resumed.model, straight.model), (resumed.objectives, straight.objectives)):
        assert same(parameters(ours), parameters(theirs))
    other = dataclasses.replace(stopped, optim=dataclasses.replace(stopped.optim, objectives={"mtpsl": 2.0}))
    with pytest.raises(CheckpointError, match="optim.objectives was {'mtpsl': 1.0}, now {'mtpsl': 2.0}"):
        Trainer(other, resume=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_single(config_for, precision):
    runs = [run_for(config_for, p, optim=dict(precision=p)) for p in ("fp32", precision)]
    for config in runs:
        Trainer(config).fit()
    single, half = ([r for r in log_of(c.out) if r["event"] == "train"] for c in runs)
    for name in ("loss", "consistency", "consistency_regulariser"):
        assert half[0][name] == pytest.approx(single[0][name], rel=0.05) and half[0][name] != single[0][name]
        if precision == "bf16":  # fp16 skips steps, while it looks for a scale of its gradients
            assert [r[name] for r in half] == pytest.approx([r[name] for r in single], rel=0.3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_waits_for_nothing(config_for, monkeypatch, precision):
    trainer = Trainer(run_for(config_for, optim=dict(precision=precision)))
    batch = next(trainer.loader.stream(0))
    refuse_readings(monkeypatch)
    trainer._step(batch, 0)
    monkeypatch.undo()
    assert trainer._step.read().values["consistency"] > 0


@pytest.mark.slow
def test_dry_run(config_for, capsys):
    from dmtl.cli._plan import dry_run

    config = run_for(config_for)
    assert dry_run(config) == 0 and "a step" in capsys.readouterr().out
    assert not Path(config.out).exists()


@pytest.mark.slow
@pytest.mark.parametrize("execution", [dict(compile=True), dict(recompute=True, micro_batch=3)])
@pytest.mark.usefixtures("compiler")
def test_other_executions_follow(config_for, execution):
    """The same run, to rounding and to what micro-batches do to batch norms."""
    optim = dict(steps=4, freeze_bn=True)
    configs = [
        run_for(config_for, "plain", optim=optim),
        run_for(config_for, optim=optim, execution=execution),
    ]
    for config in configs:
        Trainer(config, profile=True).fit()
    plain, other = ([r for r in log_of(c.out) if r["event"] == "train"] for c in configs)
    for name in ("loss", "consistency", "consistency_regulariser"):
        assert other[0][name] == pytest.approx(plain[0][name], rel=1e-4)
        assert [r[name] for r in other] == pytest.approx([r[name] for r in plain], rel=1e-2)
