"""batch_norm beyond the generic tests: the library's batch norm, large means, bad arguments; the module."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import dmtl.ops
from dmtl.nn.batch_norm import norm_act

from .tools import missing

BACKENDS = [name for name in ("reference", "cpu") if not missing(name, "batch_norm")]
RANGES = {None: (-math.inf, math.inf), 6: (0.0, 6.0), math.inf: (0.0, math.inf)}


def pair(channels: int, momentum: float = 0.1) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.uniform_(0, 3)
    return norm, copy.deepcopy(norm)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("high", RANGES)
@pytest.mark.parametrize("shape", [(4, 20, 9, 7), (1, 3, 1, 2), (8, 130, 5, 4)])
def test_as_the_module_and_its_activation(shape, high, backend):
    """Outputs, gradients, running statistics and the count of batches."""
    ours, theirs = pair(shape[1])
    x = (3 * torch.randn(shape) + 2).contiguous(memory_format=torch.channels_last)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    for _ in range(2):  # the second time on moved statistics
        with dmtl.ops.use_backend(batch_norm=backend):
            actual = norm_act(ours, a, high)
            grad = torch.randn_like(actual)
            actual.backward(grad)
        expected = theirs(b).clamp(*RANGES[high])
        expected.backward(grad)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=5e-5)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_far_from_zero_costs_no_accuracy(backend):
    x = torch.randn(2, 5, 30, 40) + 3000
    with dmtl.ops.use_backend(batch_norm=backend):
        _, mean, inv_std = dmtl.ops.batch_norm(x, torch.ones(5), torch.zeros(5), eps=0.0)
    exact = x.double().std((0, 2, 3), correction=0)
    torch.testing.assert_close(1 / inv_std.double(), exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)


def test_evaluation_and_other_norms_are_the_library_s():
    norm, reference = pair(4)
    x = torch.randn(2, 4, 3, 3)
    norm_act(norm, x)
    reference(x)
    norm.eval(), reference.eval()
    assert torch.equal(norm_act(norm, x, 6), nn.functional.relu6(reference(x)))
    assert torch.equal(norm_act(nn.Identity(), x.clone(), None), x)
    group = nn.GroupNorm(2, 4)
    assert torch.equal(norm_act(group, x), group(x).relu())


def test_one_pixel_is_refused():
    with pytest.raises(ValueError, match="batch_norm: x must be of two pixels of each channel or more"):
        dmtl.ops.batch_norm(torch.randn(1, 3, 1, 1), torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_act(nn.BatchNorm2d(3), torch.randn(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (dict(x=torch.randn(2, 3)), ValueError, r"x must be of shape \[B, C, H, W\], got \[2, 3\]"),
        (dict(x=torch.ones(2, 3, 4, 4, dtype=torch.int64)), TypeError, "x must be float32"),
        (dict(weight=torch.ones(4)), ValueError, r"weight must be of shape \[3\], got \[4\]"),
        (dict(bias=torch.ones(3, dtype=torch.float64)), TypeError, "bias must be float32.*got float64"),
        (dict(bias=None), TypeError, "bias must be a tensor, got NoneType"),
    ],
)
def test_bad_arguments(change, error, told):
    good = dict(x=torch.randn(2, 3, 4, 4), weight=torch.ones(3), bias=torch.ones(3))
    with pytest.raises(error, match=f"batch_norm: {told}"):
        dmtl.ops.batch_norm(**(good | change))
