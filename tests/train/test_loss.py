"""The batched loss equals the published execution: one sample and one task at a time."""

import math

import pytest
import torch

from dmtl.diffusion import CounterNoise
from dmtl.models import Prediction
from dmtl.train.loss import labelled_rows, partial_label_loss, sample_scale
from tests.models.cases import TASKS, small_model
from tests.tasks.cases import label_of

SIZE = (32, 40)
SAMPLES = torch.tensor([12, 5, 7, 40])


def pattern(number: int, batch: int = 4) -> dict[str, torch.Tensor]:
    """Which labels a batch has: a random pattern, with special rows and columns in some."""
    present = (
        torch.rand(batch, len(TASKS), generator=torch.Generator().manual_seed(number))
        < (0.25, 0.5, 0.8)[number % 3]
    )
    if number % 4 == 1:
        present[1] = False  # a sample without any label
    if number % 4 == 2:
        present[:, number % len(TASKS)] = False  # a task without any
    if not present.any():
        present[0, 0] = True
    return {task: present[:, i] for i, task in enumerate(TASKS)}


def inputs(number: int):
    image = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    labels = {name: label_of(task, 4, *SIZE, seed=number) for name, task in TASKS.items()}
    return image, labels


def one_by_one(model, image, labels, present, noise_of):
    """The formula of the paper's loss, a call of the model for every labelled (sample, task) pair."""
    batch, total = len(image), 0.0
    for row in range(batch):
        names = [task for task in TASKS if present[task][row]]
        for name in names:
            task, one = model.tasks[name], slice(row, row + 1)
            out = model(image[one], [name], noise=noise_of(one))
            final, initial = (
                task.loss(maps[name], labels[name][one])[0] for maps in (out.final, out.initial)
            )
            total = total + len(TASKS) / len(names) * task.weight * (final + 0.5 * initial) / batch
    return total


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
@pytest.mark.parametrize("number", range(10))
def test_batched_equals_one_by_one(diffusion, number):
    """Loss and every gradient, in float64; batch norm, which alone couples samples, has fixed statistics."""
    models = [
        small_model(diffusion=diffusion, blocks=1, detach_condition=number % 2 == 0).double()
        for _ in range(2)
    ]
    image, labels = inputs(number)
    present = pattern(number)
    out = models[0](image, labelled=labelled_rows(present), noise=CounterNoise(number, SAMPLES))
    total, _ = partial_label_loss(out, labels, present, models[0].tasks)
    total.backward()
    reference = one_by_one(models[1], image, labels, present, lambda one: CounterNoise(number, SAMPLES[one]))
    reference.backward()
    assert float(total.detach()) == pytest.approx(float(reference.detach()), rel=1e-6)
    largest = max(float(p.grad.norm()) for p in models[1].parameters() if p.grad is not None)
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            error = float((ours.grad - theirs.grad).norm())
            assert error <= 1e-5 * float(theirs.grad.norm()) + 1e-8 * largest, name


def test_the_parameters_of_an_absent_task_get_no_gradient():
    model, (image, labels) = small_model().double(), inputs(0)
    present = {task: torch.tensor([task == "edge"] * 4) for task in TASKS}
    out = model(image, labelled=labelled_rows(present))
    partial_label_loss(out, labels, present, model.tasks)[0].backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert "mtdnet.heads.semseg.weight" in without and "mtdnet.denoiser.pre_layers.heat.weight" in without
    assert not any(
        ".edge." in name or "backbone" in name or ("blocks." in name and "mtdnet" in name) for name in without
    )


def test_sample_scale():
    present = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, False])}
    assert sample_scale(present).tolist() == [1.0, 2.0, 0.0]


def test_what_stands_in_hidden_labels_does_not_matter():
    model, (image, labels) = small_model().double(), inputs(3)
    present = pattern(5)
    out = model(image, labelled=labelled_rows(present))
    total, parts = partial_label_loss(out, labels, present, model.tasks)
    for name, label in labels.items():
        label[~present[name]] = 7 if label.dtype == torch.uint8 else math.nan
    again, parts_again = partial_label_loss(out, labels, present, model.tasks)
    assert torch.equal(total, again) and parts == parts_again


def test_parts_and_weights():
    """Two samples, one task each; the logits' losses are known."""
    tasks = {"edge": TASKS["edge"], "heat": TASKS["heat"]}
    logits = {"edge": torch.zeros(1, 1, 2, 2), "heat": torch.full((1, 1, 2, 2), 3.0)}
    initial = {"edge": torch.zeros(1, 1, 2, 2), "heat": torch.full((1, 1, 2, 2), 5.0)}
    labels = {"edge": torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "heat": torch.full((2, 1, 2, 2), 2.0)}
    present = {"edge": torch.tensor([True, False]), "heat": torch.tensor([False, True])}
    total, parts = partial_label_loss(Prediction(logits, initial, {}), labels, present, tasks)
    edge = float(tasks["edge"].loss(logits["edge"], labels["edge"][:1]))
    assert float(parts["edge"]) == pytest.approx(edge / 2) and float(parts["initial/heat"]) == pytest.approx(
        1.5
    )
    expected = (2 * tasks["edge"].weight * 1.5 * edge + 2 * tasks["heat"].weight * (1 + 0.5 * 3)) / 2
    assert total.item() == pytest.approx(expected)
    baseline, parts = partial_label_loss(
        Prediction(initial, initial, {}), labels, present, tasks, final=False
    )
    assert set(parts) == {"edge", "heat"}
    assert baseline.item() == pytest.approx(tasks["edge"].weight * edge + tasks["heat"].weight * 3)


def test_a_sample_whose_labels_are_all_ignored_adds_nothing():
    model, (image, labels) = small_model().double(), inputs(1)
    present = {task: torch.tensor([True, False, False, False]) for task in TASKS}
    ignored = {name: torch.full_like(label, TASKS[name].ignore) for name, label in labels.items()}
    out = model(image, labelled=labelled_rows(present))
    total, _ = partial_label_loss(out, ignored, present, model.tasks)
    total.backward()
    assert not total.any() and all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_nothing_labelled_is_said():
    with pytest.raises(
        ValueError, match="partial_label_loss: prediction must hold at least one labelled task"
    ):
        partial_label_loss(Prediction({}, {}, {}), {}, {"edge": torch.tensor([False])}, TASKS)
