"""The baselines that speed is told against compute what our model computes."""

import pytest
import torch

from benchmarks import expert as module
from benchmarks.cases import drawn_noise
from benchmarks.contenders import worst
from benchmarks.expert import Expert
from benchmarks.plain import initial_network
from benchmarks.published import Published
from tests.models.cases import small_model
from tests.ops.tools import Recorder


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_published_execution(diffusion, reduction):
    model, image = (
        small_model(diffusion=diffusion, token_reduction=reduction, steps=3),
        torch.randn(2, 3, 64, 32),
    )
    with torch.no_grad():
        expected = model(image).final
        out = Published(model, drawn_noise(model, image, 3))(image)
        part = Published(model, drawn_noise(model, image, 3))(image, ["edge"])
        other = Published(model)(image)
    assert list(out) == list(expected) and list(part) == ["edge"]
    for task, logits in expected.items():
        torch.testing.assert_close(out[task], logits, rtol=1e-3, atol=1e-4)
        assert not torch.equal(other[task], out[task])  # without given noise it draws its own
    torch.testing.assert_close(part["edge"], out["edge"])


@pytest.mark.parametrize("stride", [8, 4])
@pytest.mark.parametrize("size", [(64, 32), (50, 70)])
@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_maps_of_both(diffusion, size, stride):
    """Decoded maps of any size are the model's, in fp32; the expert's in bf16 are near them."""
    model = small_model(diffusion=diffusion, backbone_width=16, output_stride=stride)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model.maps(image, steps=3).maps
        noise = drawn_noise(model, image, 3)
        assert worst(model.tasks, Published(model, noise, steps=3).maps(image), expected) < 1e-4
    for precision, allowed in (("fp32", 1e-4), ("bf16", 3e-2)):
        expert = Expert(model, image, precision=precision, steps=3, modes=())
        assert expert.how == "eager, channels_last"
        assert worst(model.tasks, expert.maps(image, noise), expected) < allowed
        drawn = expert.maps(image)
        assert worst(model.tasks, drawn, expected) > 1e-3  # its own noise
        assert all(drawn[task].shape == expected[task].shape for task in expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lite_encoder_without_our_operators(layout):
    """Baselines get an EfficientNet-Lite from the library alone, in either layout."""
    model = small_model(backbone="efficientnet_lite0").to(memory_format=layout)
    image = torch.randn(2, 3, 64, 96).contiguous(memory_format=layout)
    with torch.no_grad():
        _, expected, _ = model.initial(image)
        with Recorder() as recorder:
            _, found, _ = initial_network(model.initial, image)
    assert not recorder.calls
    for task, logits in expected.items():
        torch.testing.assert_close(found[task], logits, rtol=1e-3, atol=1e-4)


def test_some_tasks():
    model, image = small_model(), torch.randn(1, 3, 32, 64)
    expected = model.maps(image, ["heat", "edge"]).maps
    noise = drawn_noise(model, image, 2)
    for found in (
        Published(model, noise).maps(image, ["heat", "edge"]),
        Expert(model, image, ["heat", "edge"], precision="fp32", modes=()).maps(image, noise),
    ):
        assert worst(model.tasks, found, expected) < 1e-4


def test_expert_leaves_the_model_alone():
    model, image = small_model(), torch.randn(1, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Expert(model, image, precision="bf16", modes=()).maps(image)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.is_contiguous() for p in model.parameters())
    with pytest.raises(ValueError, match="precision must be one of fp32, tf32, bf16, fp16, got 'int8'"):
        Expert(model, image, precision="int8")


def test_expert_whose_compiler_fails(monkeypatch):
    """A mode that cannot be compiled is told, and the next one is tried; at the end comes eager."""

    def broken(function, mode):
        def call(*arguments):
            raise RuntimeError(mode)

        return call

    monkeypatch.setattr(module, "compiled", broken)
    model, image = small_model(), torch.randn(1, 3, 32, 32)
    expert = Expert(model, image, precision="fp32")
    assert expert.how == (
        "eager, channels_last; max-autotune failed: RuntimeError; default failed: RuntimeError"
    )
    noise = drawn_noise(model, image, 2)
    assert worst(model.tasks, expert.maps(image, noise), model.maps(image).maps) < 1e-4


def test_expert_keeps_the_faster(monkeypatch):
    monkeypatch.setattr(module, "compiled", lambda function, mode: function)
    model, image = small_model(), torch.randn(1, 3, 32, 32)
    for times, how in (((1.0, 2.0), "compiled max-autotune"), ((2.0, 1.0), "eager, channels_last; compiled")):
        clock = iter(times)
        monkeypatch.setattr(module, "fastest_s", lambda *_: next(clock))
        assert Expert(model, image, precision="fp32").how.startswith(how)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "mode"), [("fp32", "default"), ("bf16", "max-autotune")])
@pytest.mark.usefixtures("compiler")
def test_expert_compiled(precision, mode, monkeypatch):
    model = small_model(tasks=("semseg", "edge"), backbone_width=16, blocks=1)
    image = torch.randn(1, 3, 64, 32)
    times = iter((1.0, 2.0))  # compiled code is kept, however slow it is at this size
    monkeypatch.setattr(module, "fastest_s", lambda *_: next(times))
    expert = Expert(model, image, precision=precision, modes=(mode,))
    assert expert.how == f"compiled {mode}, frozen, channels_last"
    found = expert.maps(image, drawn_noise(model, image, 2))
    assert worst(model.tasks, found, model.maps(image).maps) < (1e-4 if precision == "fp32" else 3e-2)
