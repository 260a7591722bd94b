"""The converter: every published tensor there and back, and nothing unpickled that is not weights."""

import json
import os

import numpy as np
import pytest
import torch

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import DiffusionMTL, ModelConfig, create_model, from_pretrained
from dmtl.models.published import (
    TASK_ORDER,
    convert_to_published,
    model_from_published,
    published_state,
)
from dmtl.models.weights import read_state
from dmtl.tasks import make_task
from tests.models.cases import small_model


def convert_published(source, directory):
    model = from_pretrained(source)
    model.save_pretrained(directory)
    return model


def small_published(**options) -> dict[str, torch.Tensor]:
    """A small network of the five published tasks, under the published names, its tensors random."""
    specs = [make_task(task).spec() for task in TASK_ORDER]
    small = dict(width=16, backbone_width=4, blocks=1, mlp_ratio=2, decoder_blocks=1)
    state = published_state(create_model(ModelConfig(tasks=specs, **(small | options))))
    return {
        k: torch.randn_like(v) if v.is_floating_point() and v.dim() > 0 and not is_buffer(k) else v
        for k, v in state.items()
    }


def is_buffer(key: str) -> bool:
    return key.startswith("diffusion_model.") and key.count(".") == 1


def write_published(path, state, prefix="module.", **rest):
    content = {
        "optimizer": {},
        "scheduler": {},
        "model": {prefix + k: v for k, v in state.items()},
        "epoch": 99,
        "iter_count": 83_300,
    }
    torch.save(content | rest, path)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]), key


@pytest.mark.slow
def test_published_size_round_trip(golden_dir, tmp_path):
    """All 410 tensors at their real shapes: file -> folder -> file, bit for bit."""
    state = json.loads((golden_dir / "official_state_dict.json").read_text())
    schedule = np.load(golden_dir / "schedules.npz")
    for number, (key, shape) in enumerate(state.items()):
        if is_buffer(key):
            state[key] = torch.from_numpy(schedule[f"2/{key.removeprefix('diffusion_model.')}"])
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(number)
        else:  # values that tell positions and keys apart
            state[key] = (torch.arange(int(np.prod(shape)), dtype=torch.float32) + number).reshape(shape)
    write_published(tmp_path / "official.pth.tar", state)
    model = convert_published(tmp_path / "official.pth.tar", tmp_path / "ours")
    assert (model.config.steps, model.config.beta_start, model.config.beta_end) == (2, 1e-3, 1e-2)
    assert list(model.tasks) == list(TASK_ORDER) and model.config.width == 512 and model.config.betas is None
    del model
    (tmp_path / "official.pth.tar").unlink()
    convert_to_published(from_pretrained(tmp_path / "ours"), tmp_path / "back.pth.tar")
    content = torch.load(tmp_path / "back.pth.tar", weights_only=True, mmap=True)
    assert set(content) == {"optimizer", "scheduler", "model", "epoch", "iter_count"}
    assert len(content["model"]) == 410 and all(key.startswith("module.") for key in content["model"])
    assert_same({k.removeprefix("module."): v for k, v in content["model"].items()}, state)


@pytest.mark.parametrize(
    ("steps", "start", "end"),
    [
        (1, 1e-3, 1e-2),
        (2, 1e-3, 1e-2),
        (3, 1e-4, 2e-2),
        (5, 8.5e-4, 1.2e-2),
        (10, 1e-3, 0.123456),
        (2, 1 / 3000, 1 / 70),
    ],
)
def test_schedule_is_read_from_the_buffers(tmp_path, steps, start, end):
    state = small_published(steps=steps, beta_start=start, beta_end=end)
    write_published(tmp_path / "a.pth.tar", state)
    model = convert_published(tmp_path / "a.pth.tar", tmp_path / "ours")
    assert model.config.steps == steps and model.mtdnet.schedule.steps == steps
    assert model.config.beta_start == pytest.approx(start, rel=1e-6)
    convert_to_published(from_pretrained(tmp_path / "ours"), tmp_path / "b.pth.tar")
    assert_same(read_state(tmp_path / "b.pth.tar"), state)


def test_a_schedule_of_another_form(tmp_path):
    """Betas that fall, or lie on no line, are kept as they are."""
    state = small_published(betas=[0.2, 0.1, 0.3])
    model = model_from_published(state)
    assert model.config.betas == pytest.approx([0.2, 0.1, 0.3]) and model.mtdnet.schedule.steps == 3
    assert torch.equal(published_state(model)["diffusion_model.betas"], state["diffusion_model.betas"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_sizes_are_read_off_the_tensors(tmp_path, prefix):
    state = small_published(backbone="resnet34", blocks=3, decoder_blocks=2, mlp_ratio=4, width=24)
    write_published(tmp_path / "a.pth.tar", state, prefix)
    model = model_from_published(read_state(tmp_path / "a.pth.tar"))
    config = model.config
    assert (
        config.backbone,
        config.blocks,
        config.decoder_blocks,
        config.mlp_ratio,
        config.width,
        config.backbone_width,
    ) == ("resnet34", 3, 2, 4, 24, 4)
    assert_same(published_state(model), state)
    assert not model.training


def test_a_bare_state_dict(tmp_path):
    state = small_published()
    torch.save(state, tmp_path / "bare.pth")
    assert_same(read_state(tmp_path / "bare.pth"), state)


def test_the_old_file_format(tmp_path):
    state = small_published()
    torch.save({"model": state}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert_same(read_state(tmp_path / "old.pth.tar"), state)


def test_optimiser_state_with_numpy_scalars(tmp_path):
    state = small_published()
    scalars = {"lr": np.float64(2e-5), "decay": np.float32(1e-6), "step": np.int64(5)}
    write_published(tmp_path / "a.pth.tar", state, epoch=np.int64(99), optimizer={"param_groups": [scalars]})
    assert_same(read_state(tmp_path / "a.pth.tar"), state)


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_not_executed(tmp_path, zipped):
    state = small_published() | {"extra": Payload(f"touch {tmp_path / 'executed'}")}
    path = tmp_path / "evil.pth.tar"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"{path}: .*not loaded"):
        convert_published(path, tmp_path / "ours")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[: len(d) // 2],
        lambda d: d[:100],
        lambda d: b"",
        lambda d: b"hello" * 50,
        lambda d: d[:-60],
        lambda d: d[:1000] + b"\0" * 3000 + d[4000:],
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "a.pth.tar"
    write_published(path, small_published())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        read_state(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": {}}, {"model": {"a": 3}}, {"model": [1]}, {"epoch": 3}, torch.zeros(3)]
)
def test_not_a_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError, match="a.pth.tar: expected tensors by name"):
        read_state(tmp_path / "a.pth.tar")


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.pth.tar: no such file"):
        read_state(tmp_path / "nothing.pth.tar")


CHANGES = {
    "a weight is missing": (
        "diffusion_model.denoiser.pre_layer.sal.weight",
        None,
        "diffusion_model.denoiser.pre_layer.sal.weight: missing",
    ),
    "a shape is wrong": (
        "preliminary_dec.edge.0.conv1.weight",
        torch.zeros(16, 16, 1, 1),
        r"preliminary_dec.edge.0.conv1.weight: shape \(16, 16, 1, 1\), expected \(16, 16, 3, 3\)",
    ),
    "something foreign": ("classifier.weight", torch.zeros(3), "classifier.weight: not part of"),
    "no betas": ("diffusion_model.betas", None, "it lacks 'diffusion_model.betas'"),
    "senseless betas": (
        "diffusion_model.betas",
        torch.tensor([0.5, float("nan")]),
        "betas must be numbers between 0 and 1",
    ),
    "no betas at all": ("diffusion_model.betas", torch.zeros(0), "betas must be numbers between 0 and 1"),
    "foreign buffers": (
        "diffusion_model.posterior_mean_coef1",
        torch.tensor([1.0, 0.5]),
        "posterior_mean_coef1 does not belong to a schedule",
    ),
    "no encoder": ("backbone.conv1.weight", None, "it lacks 'backbone.conv1.weight'"),
    "no embedding": ("backbone_embed.weight", None, "it lacks 'backbone_embed.weight'"),
    "odd width": ("backbone_embed.weight", torch.zeros(15, 60, 3, 3), "width must be a multiple"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_state_that_does_not_fit(tmp_path, case):
    key, value, message = CHANGES[case]
    state = {k: v for k, v in small_published().items() if k != key} | (
        {key: value} if value is not None else {}
    )
    write_published(tmp_path / "a.pth.tar", state)
    with pytest.raises(CheckpointError, match=f"a.pth.tar: .*{message}"):
        convert_published(tmp_path / "a.pth.tar", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("preliminary_head", "it lacks 'preliminary_head"),
        ("backbone.layer3", "blocks, expected"),
        ("preliminary_dec", "decoder_blocks must be at least 1"),
        ("diffusion_model.denoiser.crossblocks", "it lacks .*crossblocks"),
    ],
)
def test_whole_parts_missing(drop, message):
    state = {k: v for k, v in small_published().items() if not k.startswith(drop)}
    with pytest.raises(CheckpointError, match=f"^some file: .*{message}"):
        model_from_published(state, "some file")


def test_an_unknown_task(tmp_path):
    state = {k.replace(".sal.", ".foo."): v for k, v in small_published().items()}
    with pytest.raises(CheckpointError, match="some file: .*task 'foo'"):
        model_from_published(state, "some file")


@pytest.mark.parametrize(
    "options",
    [
        dict(diffusion="prediction"),
        dict(diffusion="none"),
        dict(residual=True),
        dict(token_reduction=2),
        dict(output_stride=4),
    ],
)
def test_what_has_no_published_form(tmp_path, options):
    with pytest.raises(ConfigError, match="published form"):
        convert_to_published(small_model(**options), tmp_path / "b.pth.tar")
    assert os.listdir(tmp_path) == []


def test_converted_model_is_an_ordinary_one(tmp_path):
    write_published(tmp_path / "a.pth.tar", small_published())
    converted = convert_published(tmp_path / "a.pth.tar", tmp_path / "ours")
    loaded = from_pretrained(tmp_path / "ours")
    assert isinstance(loaded, DiffusionMTL) and loaded.config == converted.config
    assert_same(loaded.state_dict(), converted.state_dict())
