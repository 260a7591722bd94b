"""What a user types: the public face of `dmtl`, on a small data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import dmtl
from dmtl.cli import main
from dmtl.errors import CheckpointError, ConfigError, DataError
from dmtl.evaluation.protocol import Protocol
from tests.train.conftest import write_images

TASKS = ["semseg", "edge", "heat"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set of 32x32 images."""
    return write_images(tmp_path_factory.mktemp("api") / "images")


def tables(images, out) -> dict:
    """A run's configuration as nested tables."""
    model = dict(width=16, heads=2, backbone_width=4, blocks=1, decoder_blocks=1)
    optim = dict(steps=2, batch_size=4, warmup=0)
    return {
        "out": str(out),
        "device": "cpu",
        "data": {"root": str(images), "size": [32, 32]},
        "model": model,
        "optim": optim,
    }


@pytest.fixture(scope="module")
def run(images):
    """A finished run."""
    out = images.parent / "runs" / "mine"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dmtl.Trainer(tables(images, out)).fit()
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def data(images):
    """Its validation split."""
    return dmtl.open_dataset(images, "val")


def test_create_a_model_for_a_data_set(data):
    model = dmtl.create_model(
        "diffusionmtl", tasks=data.tasks, backbone="efficientnet_lite0", pretrained=True
    )
    assert isinstance(model, dmtl.DiffusionMTL) and model.tasks == data.tasks
    assert "efficientnet_lite0" in dmtl.list_backbones()
    assert {"semseg", "human_parts", "sal", "normals", "edge", "depth"} == set(dmtl.list_tasks())


def test_train_from_a_file_from_tables_and_from_a_configuration(images, run, tmp_path):
    """All three give the same model."""
    expected = dmtl.from_pretrained(run).state_dict()
    from dmtl.train.toml import config_from_dict, write_config

    config = config_from_dict(tables(images, tmp_path / "object"))
    write_config(config_from_dict(tables(images, tmp_path / "file")), tmp_path / "run.toml")
    for given, out in ((config, "object"), (str(tmp_path / "run.toml"), "file")):
        metrics = dmtl.Trainer(given).fit()
        assert set(metrics) >= set(TASKS)
        state = dmtl.from_pretrained(tmp_path / out).state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    with pytest.raises(ConfigError, match="did you mean 'optim'"):
        dmtl.Trainer({"optm": {}})


def test_load_a_run_and_its_folders(run):
    model = dmtl.from_pretrained(run)
    for source in (run / "model", str(run)):
        state = dmtl.from_pretrained(source).state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert isinstance(dmtl.from_pretrained(run / "best"), dmtl.DiffusionMTL) and not model.training
    with pytest.raises(CheckpointError, match=r"checkpoints/config.json: no such file"):
        dmtl.from_pretrained(run / "checkpoints")


def test_predict_an_image(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    maps = dmtl.Predictor(dmtl.from_pretrained(run))(tmp_path / "street.png")
    assert {name: (tuple(m.shape), m.dtype) for name, m in maps.items()} == {
        "semseg": ((40, 50), torch.int64),
        "edge": ((40, 50), torch.float32),
        "heat": ((40, 50), torch.float32),
    }
    again = dmtl.Predictor(run)(pixels[..., ::-1][..., ::-1])  # a view with negative strides and back
    assert all(torch.equal(maps[name], again[name]) for name in maps)


@pytest.mark.parametrize("protocol", ["default", "published"])
def test_evaluate_a_model_an_engine_or_a_path(run, data, protocol, tmp_path):
    """They agree, and with `dmtl eval`."""
    model = dmtl.from_pretrained(run).train()
    metrics = dmtl.evaluate(model, data, protocol=protocol)
    assert model.training and list(metrics) == TASKS
    assert ("odsF_seism" in metrics["edge"]) == (protocol == "published")
    for other in (run, str(run / "model"), dmtl.Engine(model, precision="fp32")):
        assert repr(dmtl.evaluate(other, data, protocol=protocol)) == repr(metrics)
    assert repr(dmtl.evaluate(run, data.root, protocol=protocol)) == repr(metrics)
    words = [
        "eval",
        str(run),
        "--data",
        str(data.root),
        "--json",
        str(tmp_path / "eval.json"),
        "--device",
        "cpu",
    ]
    assert main([*words, *(["--published"] if protocol == "published" else [])]) == 0
    theirs = json.loads((tmp_path / "eval.json").read_text())
    assert theirs["protocol"]["boundaries"] == ("seism" if protocol == "published" else None)
    ours = dmtl.evaluate(run, data, protocol=protocol, initial=True)
    assert repr(json.loads(json.dumps(ours))) == repr(theirs["metrics"])


def test_evaluate_by_a_protocol_of_ones_own(run, data):
    protocol = Protocol(frame=(64, 64), boundaries="raw", max_dist=0.05, boundary_ids=["i9"])
    metrics = dmtl.evaluate(run, data, protocol=protocol, tasks=["edge"], ids=["i8", "i9"], steps=1)
    assert list(metrics) == ["edge"] and "odsF_raw" in metrics["edge"]
    alone = dmtl.evaluate(run, data, tasks=["semseg"], ids=["i9"])
    both = dmtl.evaluate(run, data, tasks=["semseg"])
    assert alone["semseg"] != both["semseg"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            dict(protocol="publishd"),
            ConfigError,
            "protocol must be default or .*did you mean 'published'",
        ),
        (
            dict(tasks=["depth"]),
            ConfigError,
            "the data set: tasks must be among semseg, edge, heat, got 'depth'",
        ),
        (dict(ids=["i1", "i9"]), DataError, "ids: 1 of 2 are unknown, the first is 'i1', .*split 'val'"),
        (dict(protocol=Protocol(boundary_ids=["x"])), DataError, "boundary_ids: 1 of 1 are unknown"),
        (dict(protocol=Protocol(boundaries="raw"), tasks=["heat"]), ConfigError, "boundaries needs a"),
    ],
)
def test_evaluations_that_cannot_work(run, data, options, error, message):
    with pytest.raises(error, match=message):
        dmtl.evaluate(run, data, **options)


def test_protocols_that_cannot_work():
    with pytest.raises(ConfigError, match="boundaries must be one of seism, raw or None, got 'bsds'"):
        Protocol(boundaries="bsds")
    with pytest.raises(ConfigError, match="max_dist must be a fraction of the diagonal between 0 and 1"):
        Protocol(boundaries="raw", max_dist=2)
