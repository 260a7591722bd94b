"""map_loss vs. training's composition: x8 bilinear upsampling of the logits, the task's loss at the
image's size. Training runs it for every labelled pair, on the final and on the initial logits.
`test_map_loss` is semantic segmentation (21 classes), the others PASCAL-Context's other kinds.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmtl.ops.map_loss import SPEC
from dmtl.tasks import make_task

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders

PAIRS = ["tiny", "published-1", "training-ragged"]


def arguments(task, size: Size, dtype: torch.dtype, tracked: bool) -> dict:
    """Return labels as in data sets, with a tenth of the pixels ignored."""
    n, height, width = size.images, 8 * size.height, 8 * size.width
    logits = 2 * torch.randn(n, task.channels, size.height, size.width, device=DEVICE)
    shape = (n, task.label_channels, height, width)
    if task.label_names:
        label = torch.randint(0, max(2, task.channels), shape, dtype=torch.uint8, device=DEVICE)
    else:
        label = F.normalize(torch.randn(shape, device=DEVICE), dim=1)
    label = label.masked_fill(torch.rand(n, 1, height, width, device=DEVICE) < 0.1, task.ignore)
    return dict(logits=logits.to(dtype).requires_grad_(tracked), label=label, **task.loss_kind)


def run(bench, name, size, dtype, contender, backward) -> None:
    task = make_task(name)
    call = arguments(task, SIZES[size], DTYPES[dtype], backward)

    def eager(logits, label, **options):
        return task.loss(F.interpolate(logits, label.shape[2:], mode="bilinear", align_corners=False), label)

    values = 64 * call["logits"].numel()
    # An interpolation (two operations) and the loss (about four) of each logit at the image's size, twice
    # with gradients.
    work = Work(flops=(12 if backward else 6) * values, bytes=call["label"].nbytes + call["logits"].nbytes)
    bench(SPEC, contender, call, eager, work, backward=backward)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", PAIRS)
def test_map_loss(bench, size, dtype, contender):
    run(bench, "semseg", size, dtype, contender, backward=False)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", PAIRS)
def test_map_loss_with_gradients(bench, size, dtype, contender):
    run(bench, "semseg", size, dtype, contender, backward=True)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["training-ragged"])
def test_map_loss_sal_with_gradients(bench, size, dtype, contender):
    run(bench, "sal", size, dtype, contender, backward=True)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["training-ragged"])
def test_map_loss_normals_with_gradients(bench, size, dtype, contender):
    run(bench, "normals", size, dtype, contender, backward=True)


@pytest.mark.parametrize("contender", contenders(SPEC))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["training-ragged"])
def test_map_loss_depth_with_gradients(bench, size, dtype, contender):
    run(bench, "depth", size, dtype, contender, backward=True)
