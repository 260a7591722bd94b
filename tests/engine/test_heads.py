"""Heads of several tasks in one product, and the check for numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dmtl.engine.engine import Engine
from dmtl.engine.heads import Heads, finite
from dmtl.engine.network import Network
from dmtl.engine.numerics import Form
from tests.models.cases import small_model

HEADS = {"a": nn.Conv2d(8, 5, 1), "b": nn.Conv2d(8, 1, 1), "c": nn.Conv2d(8, 3, 1, bias=False)}


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_one_product(layout):
    x = torch.randn(6, 8, 4, 3).contiguous(memory_format=layout)
    logits = Heads(HEADS)(x)
    for (task, head), rows in zip(HEADS.items(), x.chunk(3), strict=True):
        torch.testing.assert_close(logits[task], head(rows))
    assert Heads(HEADS)(x.bfloat16())["a"].dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_finite(joint, value):
    """The task with the bad number, in whichever sample it is."""

    def draw(*, bad: bool):
        x = torch.randn(6, 8, 4, 3).contiguous(memory_format=torch.channels_last)
        if bad:
            x[3, 2, 1, 1] = value
        logits = Heads(HEADS)(x)
        return logits if joint else dict(logits)

    for bads, good in (([False], True), ([True], False), ([False, True], False), ([True, False], False)):
        found = finite([draw(bad=bad) for bad in bads], list(HEADS))
        assert {task: bool(ok) for task, ok in found.items()} == {"a": True, "b": good, "c": True}
    assert not bool(finite([draw(bad=True)], ["b"])["b"])


@pytest.mark.parametrize("packed", [False, True])
def test_an_engine_names_the_task(packed):
    model = small_model()
    with torch.no_grad():
        model.mtdnet.heads["edge"].bias.fill_(math.inf)
    engine = Engine(model)
    if packed:
        with torch.inference_mode():
            engine.network = Network(model, Form(apart=False))
    found = engine.maps(torch.randn(1, 3, 32, 32)).finite
    assert {task for task, ok in found.items() if not ok} == {"edge"}
