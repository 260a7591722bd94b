"""How many operators a training step calls, and weights that are cast once for all of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import PASCAL, Case
from benchmarks.training import TrainingCase, ours
from dmtl.nn import precision
from dmtl.train.distributed import _leaves
from tests.launches import computes
from tests.models.cases import TASKS
from tests.train.test_step import batch_of, model_for, step_for


class Operators(TorchDispatchMode):
    """Count the operators that compute something, as the host calls them."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if computes(func):
            self.counts[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def test_a_step(monkeypatch):
    """The published network on six images with one label each, by the modules' ways on a GPU."""
    monkeypatch.setattr("dmtl.nn.batch_norm._by_operator", lambda norm, x: False)
    options = {"width": 32, "backbone_width": 8}
    case = Case(size=(32, 32), batch=6, options=options, all_tasks=tuple(PASCAL))
    trainee, batch = ours(case, "bf16"), TrainingCase(case, "one").batch()
    trainee.step(batch)  # makes what is kept
    monkeypatch.setattr("dmtl.train.step.Step.due", False)  # no reading, as in most steps
    with Operators() as operators:
        trainee.step(batch)
    assert operators.counts.total() <= 700, operators.counts
    assert operators.counts["_to_copy"] <= 20


def gradients(model, number: int) -> tuple[float, dict]:
    step = step_for(model, optim=dict(precision="bf16"))
    step(batch_of(number), number)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return step.read().values["loss"], found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", [{}, dict(steps=3), dict(diffusion="prediction"), dict(diffusion="none")])
def test_weights_cast_once(monkeypatch, options, recompute):
    """The same loss to the bit; the same gradients to the rounding of their sums, or none."""
    found = gradients(prepared(options, recompute), 2)
    monkeypatch.setattr(precision, "_Lower", None)
    for name in ("dmtl.models.initial.lowered", "dmtl.models.mtdnet.lowered"):
        monkeypatch.setattr(name, lambda module: precision.using([]))
    monkeypatch.setattr("dmtl.models.mtdnet.lower", lambda module, copies, kinds: [[] for _ in range(copies)])
    expected = gradients(prepared(options, recompute), 2)
    assert found[0] == expected[0] and found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.dtype == torch.float32 and strides(gradient) == strides(found[1][name])
        assert (found[1][name] - gradient).norm() <= 2e-2 * gradient.norm(), name


def strides(x: torch.Tensor) -> list[int]:
    """Strides along sides longer than 1; the others mean nothing, and depend on the library's kernel."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def prepared(options: dict, recompute: bool):
    model = model_for(**options)
    if recompute and options.get("diffusion") != "none":
        model.mtdnet.recompute = True
    return model


def test_frozen_weights_get_no_gradient():
    model = model_for()
    for part in (model.initial.backbone, model.mtdnet.denoiser.blocks):
        part.requires_grad_(False)
    _, found = gradients(model, 0)
    assert found and not any("backbone" in name or "blocks" in name for name in found)


class Standardised(torch.nn.Conv2d):
    """A convolution of others, which computes with its weight before it convolves."""


def test_what_is_cast():
    """Convolutions and products of torch and of this package; layer norms only if asked for."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1),
        Standardised(2, 2, 1),
        torch.nn.LayerNorm(2),
        torch.nn.Linear(2, 2, bias=False),
    )
    with torch.autocast("cpu", torch.bfloat16):
        [weights] = precision.lower(module)
        assert [(part, name) for part, name, _ in weights] == [
            (module[0], "weight"), (module[0], "bias"), (module[3], "weight")
        ]  # fmt: skip
        [_, weights] = precision.lower(module, 2, (torch.nn.LayerNorm,))
        assert [part for part, *_ in weights] == [module[2]] * 2
        with precision.using(weights):
            assert module[2].weight.dtype == torch.bfloat16 and module[2].weight.grad_fn is not None
        assert module[2].weight.dtype == torch.float32
        with torch.no_grad():
            assert precision.lower(module) == [[]]
    assert precision.lower(module) == [[]]


def test_leaves_behind_a_cast():
    """Processes agree on which parameters a step reaches: of a cast, only those that are used."""
    model, batch = model_for(), batch_of(0)
    batch.present = {task: torch.zeros(4, dtype=torch.bool) for task in TASKS}
    batch.present["edge"][0] = True
    loss, _ = step_for(model, optim=dict(precision="bf16")).batch_loss(batch, 0, True)
    loss.backward()
    reached = _leaves(loss)
    expected = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name, p in model.named_parameters() if id(p) in reached} == expected
    assert any("decoders.edge" in name for name in expected)
    assert not any("decoders.heat" in name for name in expected)
