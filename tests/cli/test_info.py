"""`dmtl info MODEL`: the figures are those of the model, of the counted work and of the engine."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch

from dmtl.engine import describe
from dmtl.engine.describe import describe_model
from dmtl.engine.engine import Engine
from dmtl.engine.memory import peak_bytes, tile_side
from dmtl.models import create_model, from_pretrained
from dmtl.models.work import count, flops
from dmtl.nn.grouped_conv import GroupedConv
from tests.models.cases import small_model

CPU = torch.device("cpu")


def test_one_size(dmtl, trained):
    status, out, err = dmtl("info", trained, "--size", 40, 50, "--batch", 3, "--device", "cpu")
    assert (status, err) == (0, "")
    for words in ("semseg (classes, 3 channels)", "height (scalar, 1 channel)", "normals (unit_vector",
                  "2 steps of denoising features", "3 images at once", "whole"):  # fmt: skip
        assert words in " ".join(out.split()), words
    config = from_pretrained(trained / "model").config
    row = next(line for line in out.splitlines() if "40x50" in line)
    stages = [
        [p for p in count(config, (40, 50), 3) if p.stage == s] for s in ("initial", "condition", "chain")
    ]
    expected = [flops(parts) / 1e9 for parts in (*stages, sum(stages, []))]
    found = [float(text.replace(",", "")) for text in re.findall(r"[\d.,e-]+", row.split("x50", 2)[2])[:4]]
    assert found == pytest.approx(expected, rel=0.01)
    assert f"{peak_bytes(config, 4, 3, 40, 50) / 2**20:,.0f} " in row


def test_default_sizes_of_a_baseline(dmtl, baseline):
    out = dmtl("info", baseline).out
    assert [f"{side}x{side}" in out for side in (256, 512, 1024, 2048)] == [True] * 4
    assert "the initial network alone" in out and "chain" not in out and "cross blocks" not in out


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
def test_parameters_and_what_the_engine_keeps(diffusion):
    """The parts make up the whole; transformed weights are as large as the engine's own."""
    model = small_model(diffusion=diffusion)
    facts = json.loads(json.dumps(describe_model(model, CPU, [(64, 64)], 1)))
    whole = sum(p.numel() for p in model.parameters())
    assert sum(facts["parameters"].values()) == whole and facts["parameter_bytes"] == 4 * whole
    network = Engine(model, precision="fp32").network
    packed = [tensor for group in groups(vars(network)) for tensor in group.packed or ()]
    assert facts["transformed_bytes"] == pytest.approx(4 * sum(t.numel() for t in packed), rel=0.05)


def test_a_sampler_that_remembers_takes_more_memory():
    one, two = (
        describe_model(small_model(sampler=sampler, steps=3), CPU, [(64, 64)])["sizes"][0]["peak_bytes"]
        for sampler in ("ancestral", "dpmpp_2m")
    )
    assert two > one


def test_a_control_says_what_it_lacks(dmtl, tmp_path):
    small_model(without=["noise", "condition"]).save_pretrained(tmp_path)
    out = " ".join(dmtl("info", tmp_path, "--size", 32, 32).out.split())
    assert "2 steps of denoising features, without noise and condition, sampler ancestral" in out


def groups(value) -> list[GroupedConv]:
    """Every layer of packed convolutions that an engine's network holds."""
    if isinstance(value, GroupedConv):
        return [value]
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return [group for part in value for group in groups(part)] if isinstance(value, (list, tuple)) else []


def test_a_large_image_is_seen_smaller(dmtl, tmp_path):
    small_model(image_size=(32, 48)).save_pretrained(tmp_path)
    row = describe_model(small_model(image_size=(32, 48)), CPU, [(320, 481)])["sizes"][0]
    assert row["seen"] == [32, 49]
    plain = describe_model(small_model(), CPU, [(32, 49)])["sizes"][0]
    assert row["flops"] == plain["flops"] and row["peak_bytes"] > plain["peak_bytes"]
    out = dmtl("info", tmp_path, "--size", 320, 481).out
    assert re.search("320x481.*32x49", out)


def test_tiles_where_memory_is_short(dmtl, trained, monkeypatch, tmp_path):
    config = dataclasses.replace(from_pretrained(trained / "model").config, image_size=None)
    create_model(config).save_pretrained(trained := tmp_path / "model")
    available = peak_bytes(config, 4, 1, 1024, 1024)
    monkeypatch.setattr(describe, "available_bytes", lambda device: available)
    out = dmtl("info", trained).out
    goes = {side: re.search(rf"{side}x{side}.*?(whole|\d+ px)", out)[1] for side in (512, 1024, 2048)}
    side = tile_side(config, 4, 1, 1024, 1024, available)
    assert goes == {512: "whole", 1024: f"{side} px", 2048: f"{side} px"}
    monkeypatch.setattr(describe, "available_bytes", lambda device: None)
    out = dmtl("info", trained, "--size", 1024, 1024).out
    assert "not known here" in out and "whole" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--size", 64, 64], "add MODEL"),
        (["--batch", 2], "add MODEL"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["nowhere", "--size", 0, 64], "--size must be at least 1, got 0 64"),
        (["nowhere", "--batch", 0], "--batch must be at least 1, got 0"),
    ],
)
def test_wrong_words(dmtl, words, expected):
    status, out, err = dmtl("info", *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and expected in err
