"""A step on partial labels: the published gradients, micro-batches, and what happens when numbers or memory
fail."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.cases import drawn_noise
from benchmarks.published import PublishedTraining
from dmtl.data.loading.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.errors import ConfigError
from dmtl.runtime.distributed import World
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.config import ExecutionConfig, OptimConfig, RunConfig
from dmtl.train.optim import optimizer_for
from dmtl.train.step import Step, _by_kernels
from dmtl.train.weighting import make_weighting
from tests.models.cases import TASKS, small_model
from tests.tasks.cases import label_of

SIZE = (32, 64)
BATCH = 4


def pattern(number: int) -> dict[str, torch.Tensor]:
    """A random label pattern; some have a sample without any label, some lack a task."""
    generator = torch.Generator().manual_seed(number)
    present = torch.rand(BATCH, len(TASKS), generator=generator) < (0.2, 0.4, 0.7)[number % 3]
    if number % 4 == 1:
        present[number % BATCH] = False
    if number % 4 == 2:
        present[:, number % len(TASKS)] = False
    if not present.any():
        present[1, 2] = True
    return {task: present[:, i] for i, task in enumerate(TASKS)}


def batch_of(number: int, image: int | None = None) -> Batch:
    present = pattern(number)
    seed = number if image is None else image
    image = torch.randn(BATCH, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return Batch(
        ids=[f"image{i}" for i in range(BATCH)],
        index=torch.arange(BATCH) + 10 * number,
        image=image,
        labels={name: label_of(task, BATCH, *SIZE, seed=number) for name, task in TASKS.items()},
        present=present,
        valid_size=[SIZE] * BATCH,
        total=BATCH,
        labelled={task: int(mask.sum()) for task, mask in present.items()},
    )


def step_for(model, say=lambda text: None, optim: dict = {}, **execution) -> Step:
    options = dict(optimizer="adam", clip=0.0, weight_decay=0.0, seed=5) | optim
    config = RunConfig(optim=OptimConfig(**options), execution=ExecutionConfig(**execution))
    weighting = make_weighting(config.optim, model.tasks)
    batch_loss = BatchLoss(model, weighting, config.optim)
    optimizer = optimizer_for(config.optim, model, extra=weighting.parameters())
    return Step(
        batch_loss,
        batch_loss,
        optimizer,
        config,
        rate=lambda step: 1e-3,
        total_steps=100,
        world=World(),
        say=say,
    )


def model_for(**options):
    torch.manual_seed(0)
    return small_model(**options).train()


def published_gradients(model, batch: Batch, seed: int, step: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients as published: the initial network on the batch, then one (sample, task) pair at a
    time, its loss divided by the batch and multiplied by T over its sample's labels."""
    draws = len(model.mtdnet.schedule.betas)
    noise = drawn_noise(model, batch.image, draws, CounterNoise((seed << 32) + step, batch.index))
    # the layout decides how sums are rounded, and so on which side of its kink a ReLU falls
    image = batch.image.contiguous(memory_format=torch.channels_last)
    total = PublishedTraining(model).loss(dataclasses.replace(batch, image=image), noise)
    model.zero_grad(set_to_none=True)
    total.backward()
    return total.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
@pytest.mark.parametrize(
    "number", [*range(16), *(pytest.param(number, marks=pytest.mark.slow) for number in range(16, 50))]
)
def test_gradients_are_the_published_ones(number, diffusion):
    """Fifty random label patterns, batch norm in training mode; what no label reaches has no gradient.

    With about one image in a hundred a pre-activation is within rounding of zero, and the two executions see
    a ReLU on its two sides; a second image then decides."""
    worst = []
    for image in (number, 1000 + number):
        batch = batch_of(number, image)
        model = model_for(diffusion=diffusion, output_stride=4 if number % 5 == 0 else 8)
        loss, expected = published_gradients(model, batch, seed=5, step=number)
        model.zero_grad(set_to_none=True)
        step = step_for(model)
        step(batch, number)
        assert step.read().values["loss"] == pytest.approx(loss, rel=1e-5)
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert set(found) == set(expected)
        size = float(torch.stack([g.norm() for g in expected.values()]).norm())
        worst.append(
            max(
                (float((found[name] - grad).norm() / (grad.norm() + 1e-3 * size)), name)
                for name, grad in expected.items()
            )
        )
        if worst[-1][0] < 1e-4:
            return
    raise AssertionError(f"gradients differ, relative to their norm: {worst}")


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)


@pytest.mark.parametrize("diffusion", ["none", "feature", "prediction"])
def test_bits_do_not_depend_on_the_number_of_threads(diffusion):
    """Torch's operators have one thread if kernels compute nearly everything."""
    threads, found, inside = torch.get_num_threads(), [], []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            model = model_for(backbone="efficientnet_lite0", width=64, diffusion=diffusion)
            model.initial.backbone.register_forward_hook(lambda *_: inside.append(torch.get_num_threads()))
            step = step_for(model)
            for i in range(2):
                step(batch_of(i), i)
            assert torch.get_num_threads() == number
            found.append(parameters(model))
    finally:
        torch.set_num_threads(threads)
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert set(inside) == {1}


def test_other_steps_keep_torchs_threads():
    """Another encoder, a narrow network, 16 bits, compiled parts, further losses, many cores."""
    lite = dict(backbone="efficientnet_lite0", width=64)
    wide, optim = model_for(**lite), OptimConfig()
    cases = [
        (wide, RunConfig(optim=optim), True),
        (model_for(width=64), RunConfig(optim=optim), False),
        (model_for(**lite | {"width": 16}), RunConfig(optim=optim), False),
        (wide, RunConfig(optim=dataclasses.replace(optim, precision="bf16")), False),
        (wide, RunConfig(optim=optim, execution=ExecutionConfig(compile=True)), False),
        (wide, RunConfig(optim=dataclasses.replace(optim, objectives={"mtpsl": 1.0})), False),
    ]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for model, config, expected in cases:
            assert _by_kernels(model, torch.device("cpu"), config) is expected
        torch.set_num_threads(8)
        assert not _by_kernels(wide, torch.device("cpu"), cases[0][1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_add_up(micro_batch):
    """With frozen batch norms, which alone see the images together."""
    results = []
    for size in (0, micro_batch):
        model = model_for().eval()
        step = step_for(model, micro_batch=size)
        step(batch_of(2), 0)
        results.append((step.read().values, {n: p.grad for n, p in model.named_parameters()}))
    (whole, expected), (divided, found) = results
    assert divided == pytest.approx(whole, rel=1e-4)
    for name, grad in expected.items():
        assert (grad is None) == (found[name] is None), name
        if grad is not None:
            torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5 * float(grad.norm()) + 1e-7)


def test_recomputing_changes_nothing():
    results = []
    for recompute in (False, True):
        model = model_for()
        model.mtdnet.recompute = recompute
        step = step_for(model)
        step(batch_of(0), 0)
        results.append(parameters(model))
    assert same(*results)


def test_recomputing_keeps_less():
    """Bytes that autograd saves: with recomputation they do not grow with the denoising steps."""
    kept = {}
    for recompute in (False, True):
        for steps in (1, 4):
            model = model_for(steps=steps, blocks=4)
            model.mtdnet.recompute = recompute
            seen = {}
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
            ):
                loss, _ = step_for(model).batch_loss(batch_of(0), 0, True)
            kept[recompute, steps] = sum(t.untyped_storage().nbytes() for t in seen.values())
            del loss
    growth = {recompute: kept[recompute, 4] - kept[recompute, 1] for recompute in (False, True)}
    assert growth[True] < 0.01 * growth[False] and kept[True, 4] < kept[False, 1]


def test_a_step_without_finite_loss_changes_nothing():
    """One label of one task is absurd: no weight, moment or statistic moves, and it is said which."""
    model, batch = model_for(), batch_of(0)
    step = step_for(model)
    step(batch_of(3), 0)
    step.read()
    before, moments = parameters(model), str(step.optimizer.state_dict()["state"])
    row = int(batch.present["heat"].nonzero()[0])
    good = batch.labels["heat"]
    batch.labels["heat"] = good.clone()
    batch.labels["heat"][row] = 3e38
    step(batch, 1)
    report = step.read()
    assert same(before, parameters(model)) and moments == str(step.optimizer.state_dict()["state"])
    assert [(s.step, s.reason, s.pairs) for s in report.skipped] == [(1, "loss", {"heat": [f"image{row}"]})]
    assert step.in_a_row == 1
    batch.labels["heat"] = good
    step(batch, 2)
    report = step.read()
    assert report.skipped == [] and step.in_a_row == 0 and not same(before, parameters(model))


def test_a_gradient_that_is_not_finite_names_every_pair():
    model, batch = model_for(), batch_of(0)
    before = parameters(model)
    step = step_for(model)
    handle = model.initial.embed.weight.register_hook(lambda grad: grad * float("nan"))
    for number in range(2):
        step(batch, number)
    report = step.read()
    handle.remove()
    assert same(before, parameters(model)) and step.in_a_row == 2
    labelled = {
        t: [f"image{i}" for i in m.nonzero()[:, 0].tolist()] for t, m in batch.present.items() if m.any()
    }
    assert [(s.step, s.reason) for s in report.skipped] == [(0, "gradient"), (1, "gradient")]
    assert report.skipped[0].pairs == labelled


def test_skipped_steps_leave_no_trace_in_the_weighting():
    model, batch = model_for(), batch_of(0)
    step = step_for(model, optim=dict(weighting="dwa"))
    step(batch, 0)
    state = parameters(step.batch_loss.weighting)
    batch.labels["heat"] = torch.full_like(batch.labels["heat"], 3e38)
    step(batch, 1)
    assert same(state, parameters(step.batch_loss.weighting))
    assert len(step.read().skipped) == 1


def failing(model, above: int, error: Exception):
    """The model's device has room for `above` images at once."""
    forward = model.forward

    def limited(image, **options):
        if len(image) > above:
            raise error
        return forward(image, **options)

    model.forward = limited


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
    ],
)
def test_out_of_memory_halves_the_micro_batch_once(error):
    said, whole, model = [], model_for().eval(), model_for().eval()
    failing(model, 2, error)
    for each, say in ((whole, print), (model, said.append)):
        step = step_for(each, say)
        step(batch_of(2), 0)
    assert step.micro_batch == 2 and len(said) == 1 and "execution.micro_batch = 2" in said[0]
    for (name, p), other in zip(whole.named_parameters(), model.parameters(), strict=True):
        if p.grad is not None:
            assert float((other.grad - p.grad).norm()) < 1e-4 * float(p.grad.norm()) + 1e-6, name
    failing(model, 1, error)
    with pytest.raises(ConfigError, match="execution.micro_batch = 2 still does not fit .*optim.batch_size"):
        step(batch_of(2), 1)


def test_other_errors_pass():
    model = model_for()
    failing(model, 0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        step_for(model)(batch_of(0), 0)


def test_a_failed_attempt_leaves_batch_norm_as_it_was():
    """Statistics are of the second attempt alone: two halves, not the whole batch before them."""
    found = []
    for limit in (4, 2):
        model = model_for()
        forward = model.mtdnet.forward

        def limited(features, initial, rows, *rest, _forward=forward, _limit=limit):
            if len(next(iter(features.values()))) > _limit:
                raise torch.OutOfMemoryError("out of memory")
            return _forward(features, initial, rows, *rest)

        model.mtdnet.forward = limited  # fails after the initial network, whose statistics have moved
        step = step_for(model, micro_batch=2 if limit == 4 else 0)
        step(batch_of(0), 0)
        found.append(parameters(model))
    assert same(*found)


@pytest.mark.parametrize("weighting", ["uncertainty", "dwa"])
def test_weighting_enters_the_loss(weighting):
    """At its start a weighting multiplies by one and adds nothing; a learned one gets a gradient where its
    task has labels."""
    values = []
    for name in ("fixed", weighting):
        step = step_for(model_for(), optim=dict(weighting=name))
        step(batch_of(2), 0)
        values.append(step.read().values["loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    if weighting == "uncertainty":
        present = batch_of(2).present
        moved = {t: bool(p != 0) for t, p in step.batch_loss.weighting.log_variance.items()}
        assert moved == {task: bool(mask.any()) for task, mask in present.items()}
