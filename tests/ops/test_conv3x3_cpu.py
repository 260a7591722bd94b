"""The C++ convolution at sizes where it does what small maps do not: several blocks of tiles, several groups
of packed tasks, channels in all residues; how exact it is, and that neither threads nor instruction sets nor
packing change it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmtl.ops
from dmtl.runtime import native

from .tools import missing

pytestmark = pytest.mark.skipif(bool(missing("cpu", "conv3x3")), reason=missing("cpu", "conv3x3"))


def relative(actual: Tensor, truth: Tensor) -> tuple[float, float]:
    """Error in the 2-norm and in the largest element."""
    error = actual.double() - truth
    return float(error.norm() / truth.norm()), float(error.abs().max() / truth.abs().max())


def draw(counts: list[int], C: int, K: int, h: int, w: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    x = torch.randn(sum(counts), C, h, w).contiguous(memory_format=torch.channels_last)
    weights = [torch.randn(K, C, 3, 3) / (9 * C) ** 0.5 for _ in counts]
    return x, weights, [torch.randn(K) for _ in counts]


def forward_and_gradients(x, weights, biases, counts, grad) -> list[Tensor]:
    leaves = [z.detach().requires_grad_() for z in (x, *weights, *biases)]
    tasks = len(weights)
    with dmtl.ops.use_backend(conv3x3="cpu"):
        out = dmtl.ops.conv3x3(leaves[0], leaves[1 : 1 + tasks], leaves[1 + tasks :], counts)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def truth_of(x, weights, biases, counts, grad) -> list[Tensor]:
    leaves = [z.detach().double().requires_grad_() for z in (x, *weights, *biases)]
    tasks, rows = len(weights), leaves[0].split(counts)
    outs = [
        F.conv2d(rows[t], leaves[1 + t], leaves[1 + tasks + t], padding=1) for t in range(tasks) if counts[t]
    ]
    out = torch.cat(outs)
    absent = sum(0 * z.sum() for z in leaves)
    return [out.detach(), *torch.autograd.grad(out + absent, leaves, grad.double())]


@pytest.mark.parametrize(
    ("counts", "C", "K", "h", "w"),
    [
        ([1], 512, 512, 32, 32),  # the published width
        ([3, 0, 2], 40, 200, 31, 18),  # tails in channels and tiles
        ([2], 8, 24, 130, 126),  # many tiles of few channels
        ([1, 1, 1], 256, 232, 20, 20),  # more weights than are packed at a time
        ([7], 256, 256, 36, 36),  # more tiles than a block holds
    ],
)
def test_exactness(counts, C, K, h, w):
    """At most 1e-5 in norm and in the largest element, in the result and all gradients."""
    torch.manual_seed(C + K)
    x, weights, biases = draw(counts, C, K, h, w)
    grad = torch.randn(sum(counts), K, h, w)
    names = ["out", "x", *["weight"] * len(counts), *["bias"] * len(counts)]
    actual = forward_and_gradients(x, weights, biases, counts, grad)
    for name, got, want in zip(names, actual, truth_of(x, weights, biases, counts, grad), strict=True):
        if want.any():
            assert max(relative(got, want)) <= 5e-6, (name, relative(got, want))
        else:  # of an absent task
            assert not got.any()


def test_threads_and_instruction_sets():
    """The same bits, over several blocks of tiles."""
    torch.manual_seed(1)
    counts = [5, 0, 3]
    x, weights, biases = draw(counts, 136, 120, 22, 26)
    grad = torch.randn(8, 120, 22, 26)
    core, threads = native.core(), torch.get_num_threads()
    best = core.isa()
    expected = forward_and_gradients(x, weights, biases, counts, grad)
    try:
        for isa in core.isas():
            for count in (1, 2, 3):
                core.use_isa(isa)
                torch.set_num_threads(count)
                actual = forward_and_gradients(x, weights, biases, counts, grad)
                assert all(map(torch.equal, actual, expected)), (isa, count)
                if isa == "baseline":
                    break  # slow
    finally:
        core.use_isa(best)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", ["dense", "channels_last", "mixed", "sliced"])
def test_weight_layouts(layout):
    """Weights of any strides, packed or not, give the same bits; their
    gradients have the reference's strides."""
    torch.manual_seed(2)
    counts = [2, 1]
    x, weights, biases = draw(counts, 24, 32, 10, 11)
    laid = {
        "dense": weights,
        "channels_last": [w.contiguous(memory_format=torch.channels_last) for w in weights],
        "mixed": [weights[0], weights[1].contiguous(memory_format=torch.channels_last)],
        "sliced": [torch.stack([w, w], dim=4)[..., 0] for w in weights],
    }[layout]
    grad = torch.randn(3, 32, 10, 11)
    expected = forward_and_gradients(x, weights, biases, counts, grad)
    actual = forward_and_gradients(x, laid, biases, counts, grad)
    assert all(map(torch.equal, actual, expected))
    for got, weight in zip(actual[2:4], laid, strict=True):
        assert got.stride() == torch.empty_like(weight).stride()
    with dmtl.ops.use_backend(conv3x3="cpu"):
        packed = [dmtl.ops.pack_conv3x3(weight) for weight in laid]
        assert torch.equal(dmtl.ops.conv3x3(x, laid, biases, counts, packed=packed), expected[0])


def test_few_pixels_are_the_library_s():
    """Where transforming the weights costs more than it saves; packed weights are used all the same."""
    torch.manual_seed(3)
    x, weights, biases = draw([1], 128, 128, 4, 5)
    grad = torch.randn(1, 128, 4, 5)
    truth = truth_of(x, weights, biases, [1], grad)
    for got, want in zip(forward_and_gradients(x, weights, biases, [1], grad), truth, strict=True):
        assert max(relative(got, want)) <= 1e-6
    with dmtl.ops.use_backend(conv3x3="cpu"):
        packed = [dmtl.ops.pack_conv3x3(weight) for weight in weights]
        out = dmtl.ops.conv3x3(x, weights, biases, [1], packed=packed)
    assert max(relative(out, truth[0])) <= 5e-6
    assert not torch.equal(out, forward_and_gradients(x, weights, biases, [1], grad)[0])


def test_too_many_tasks_are_refused():
    x, weights, biases = draw([1] * 65, 8, 8, 3, 3)
    with (
        dmtl.ops.use_backend(conv3x3="cpu"),
        pytest.raises(NotImplementedError, match="65 tasks are more than 64"),
    ):
        dmtl.ops.conv3x3(x, weights, biases, [1] * 65)
    dmtl.ops.conv3x3(x, weights, biases, [1] * 65)  # automatic choice takes the reference
