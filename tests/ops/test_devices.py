"""Inputs that the tests of a GPU's backends make are made on its device."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from . import test_conv3x3, test_cross_attention, test_token_mlp


@pytest.mark.parametrize("layout", ["dense", "sliced", "permuted"])
@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (test_conv3x3.make_case, dict(counts=(1, 2), C=8, K=8, h=3, w=4, relu=True, biases=True, taps=True)),
        (test_cross_attention.make, dict(rows=2, n=3, m=4, width=16, heads=2, given=True)),
        (test_cross_attention.make, dict(rows=2, n=3, m=4, width=16, heads=2)),
        (test_token_mlp.make, dict(shape=(2, 3), width=8, hidden=16)),
    ],
    ids=lambda value: value.__module__.split(".")[-1] if callable(value) else "",
)
def test_inputs_are_on_the_device(make, sizes, layout):
    found = tree_leaves(make(**sizes, layout=layout, device="meta"))
    assert {x.device.type for x in found if isinstance(x, torch.Tensor)} == {"meta"}
