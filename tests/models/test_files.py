"""Weights on disk: what is saved comes back, what is damaged is named, what is old survives a full disk."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmtl.errors import CheckpointError
from dmtl.models import from_pretrained
from dmtl.runtime.files import write_atomically, write_text
from tests.models.cases import small_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def saved(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
def test_round_trip(tmp_path, diffusion):
    model = small_model(diffusion=diffusion, steps=3)
    model.to(memory_format=torch.channels_last).train().save_pretrained(tmp_path / "a" / "b")
    again = from_pretrained(tmp_path / "a" / "b")
    assert type(again) is type(model) and again.config == model.config and not again.training
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [CONFIG, WEIGHTS]
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        before, after = model.eval()(image).final, again.to(memory_format=torch.channels_last)(image).final
    assert all(torch.equal(before[task], after[task]) for task in before)


def test_saving_again_replaces(saved):
    other = small_model(seed=1)
    other.save_pretrained(saved)
    assert torch.equal(from_pretrained(saved).initial.embed.weight, other.initial.embed.weight)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{saved / name}: no such file"):
        from_pretrained(saved)


def test_nothing_there(tmp_path):
    for source in (tmp_path / "nothing", str(tmp_path / "nothing"), "nothing.pth.tar"):
        with pytest.raises(CheckpointError, match=r"nothing.*: no such file or folder, expected a run"):
            from_pretrained(source)
    (tmp_path / "official.pth.tar").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"official.pth.tar: damaged or not a torch checkpoint"):
        from_pretrained(tmp_path / "official.pth.tar")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: b"not weights at all",
    ],
)
def test_corrupt_weights(saved, damage):
    (saved / WEIGHTS).write_bytes(damage((saved / WEIGHTS).read_bytes()))
    with pytest.raises(CheckpointError, match=f"{saved / WEIGHTS}: damaged or not a safetensors file"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"widht": 3}', r"model\.widht is not a known key; did you mean 'model.width'"),
        ('{"width": "a"}', "must be of type int"),
        ('{"tasks": [{"name": "foo"}]}', "kind must be given"),
        ("{}", "model.tasks must name at least one task"),
    ],
)
def test_senseless_config(saved, text, message):
    (saved / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=f"{saved / CONFIG}: .*{message}"):
        from_pretrained(saved)


def test_weights_of_another_configuration(saved):
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | {"width": 64}))
    with pytest.raises(
        CheckpointError,
        match=r"weights do not fit .*shape \(32, 120, 3, 3\), expected \(64, 120, 3, 3\).*more",
    ):
        from_pretrained(saved)
    (saved / CONFIG).write_text(json.dumps(config | {"diffusion": "none"}))
    with pytest.raises(CheckpointError, match="mtdnet.*: not part of this configuration"):
        from_pretrained(saved)


def test_a_missing_tensor_is_named(saved):
    state = load_file(saved / WEIGHTS)
    del state["initial.embed.bias"]
    save_file(state, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{saved}: .*initial.embed.bias: missing"):
        from_pretrained(saved)


def test_weights_that_are_not_finite(tmp_path):
    model = small_model()
    model.initial.decoders["edge"][0].bn1.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"initial\.decoders\.edge\.0\.bn1\.weight .* not finite"):
        from_pretrained(tmp_path)


def test_full_disk_leaves_the_old_file(tiny_disk):
    path = tiny_disk / "model.bin"
    write_text(path, "old")
    with pytest.raises(OSError, match=f"cannot write {path}"):
        write_text(path, "x" * 200_000)
    assert path.read_text() == "old" and os.listdir(tiny_disk) == ["model.bin"]


def test_full_disk_while_saving_a_model(tiny_disk):
    folder = tiny_disk / "model"
    with pytest.raises(OSError, match=f"cannot write {folder / WEIGHTS}"):
        small_model().save_pretrained(folder)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("other")]
)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    write_text(path, "old")

    def write(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="cannot write .*a/b"):
        write_text(tmp_path / "a" / "b", "text")
