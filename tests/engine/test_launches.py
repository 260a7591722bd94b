"""How many kernels a GPU launches for an image."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import dmtl
from dmtl.engine.engine import Engine
from dmtl.engine.network import Network
from dmtl.engine.numerics import Form
from dmtl.models import ModelConfig, create_model
from dmtl.nn import resnet
from dmtl.tasks import make_task
from tests.ops.tools import missing

pytestmark = pytest.mark.skipif(bool(missing("triton")), reason=missing("triton"))
PASCAL = [make_task("semseg", classes=21), make_task("human_parts", classes=7)]
PASCAL += [make_task(name) for name in ("sal", "normals", "edge")]


class Eager:
    """In the place of `Graphs`: what a graph would capture, without one."""

    held = 0

    def __contains__(self, key) -> bool:
        return False

    def __call__(self, key, compute, inputs):
        return compute(*inputs)


def fused(launches, extra: int, x, weight, *rest):
    """cuDNN's convolution with an epilogue, one launch; `extra` arguments come before the bias."""
    launches.add("cudnn_convolution")
    with torch._C._DisableTorchDispatch():
        return torch.conv2d(x, weight, *rest[extra:])


def test_an_image(monkeypatch):
    """The published network at batch 1, in the form of a GPU, by our kernels and cuDNN's epilogues."""
    from tests.launches import Launches

    model = create_model(
        ModelConfig(tasks=[task.spec() for task in PASCAL], width=32, backbone_width=8)
    ).eval()
    engine, image = Engine(model), torch.randn(1, 3, 32, 32)
    launches = Launches(monkeypatch)
    for name, z in (("cudnn_convolution_relu", ()), ("cudnn_convolution_add_relu", (None, 1.0))):
        monkeypatch.setattr(torch, name, partial(fused, launches, len(z)))
    with dmtl.use_backend("triton"), torch.inference_mode():
        engine.network = Network(model, Form(torch.float16, torch.float16, apart=False, pack=True))
    monkeypatch.setattr(resnet, "_fused_by_cudnn", lambda device, dtype: True)
    engine._graphs = Eager()
    with dmtl.use_backend("triton"):
        engine.maps(image)  # makes what is kept
        launches.counts.clear()
        with launches:
            engine.maps(image)
    launches.add("condition_tokens")  # CUDA's kernels, which are chosen first, are three: Triton's two
    assert launches.total <= 120, launches.counts
