"""Exported files: they run without dmtl, as the documentation shows, and give the model's maps."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from dmtl.data.loading.transforms import normalise
from dmtl.diffusion import CounterNoise
from dmtl.engine.export import description, export_model, formats, graph, parity
from dmtl.engine.export.parity import probe
from dmtl.errors import ConfigError, DataError, ExportError
from dmtl.predict import Predictor
from dmtl.tasks import make_task
from dmtl.tasks.base import relative_difference
from tests.models.cases import TASKS, small_model

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
EXAMPLES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL))
SIZE = (40, 50)
ENDING = """
import sys
assert not [name for name in sys.modules if name.split(".")[0] == "dmtl"]
np.savez("maps.npz", **{task: np.asarray(value) for task, value in maps.items()})
"""

slow = pytest.mark.slow


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**options):
    return small_model(**(dict(width=16, blocks=1, tasks=("semseg", "normals", "heat")) | options))


def elsewhere(folder: Path, example: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the documentation's example makes of uint8 images, in a process without dmtl."""
    np.save(folder / "images.npy", pixels.numpy())
    command = [sys.executable, "-c", EXAMPLES[example] + ENDING]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "maps.npz") as maps:
        return {task: torch.from_numpy(maps[task]) for task in maps.files}


def check(model, maps: dict[str, torch.Tensor], pixels: torch.Tensor, **options) -> None:
    """Every image's maps are the predictor's; class ids may differ where two logits tie."""
    predictor = Predictor(copy.deepcopy(model), **options)
    assert list(maps) == list(predictor.tasks)
    chain = {name: options.get(name) for name in ("steps", "sampler")}
    noise = CounterNoise(options.get("seed", 0))
    for row, image in enumerate(pixels):
        expected = predictor(image)
        for task, value in expected.items():
            assert maps[task].dtype == value.dtype and maps[task].shape[1:] == value.shape
            if task == "semseg":
                with torch.no_grad():
                    logits = model(normalise(image)[None], noise=noise, **chain).final[task]
                gaps = (logits.amax(1) - logits.gather(1, maps[task][row][None, None])[:, 0])[0]
                assert gaps.max() < 1e-4 and (maps[task][row] == value).float().mean() > 0.99
            else:
                torch.testing.assert_close(maps[task][row], value, rtol=0, atol=1e-4)


FORMS = {
    "feature": {},
    "prediction": dict(diffusion="prediction", residual=True, token_reduction=2),
    "residual": dict(residual=True, eta=0.0, output_stride=4),
    "control": dict(without=["noise", "condition"]),
    "baseline": dict(diffusion="none", output_stride=4),
}
SAMPLERS = {
    "feature": dict(steps=4, seed=5, sampler="dpmpp_2m"),
    "prediction": dict(steps=3, seed=2**63),
}
QUICK = ("baseline",)  # cli/test_export.py exports a model with a chain


@pytest.mark.parametrize("form", [f if f in QUICK else pytest.param(f, marks=slow) for f in FORMS])
def test_program_elsewhere(tmp_path, form):
    """The graph knows no operator of dmtl, and takes any batch; seed and steps are those asked for."""
    model, sampler = tiny(**FORMS[form]), SAMPLERS.get(form, {})
    export_model(model, tmp_path / "program.pt2", format="program", size=SIZE, **sampler)
    for batch in (3,) if form in QUICK else (1, 4):
        pixels = torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8)
        check(model, elsewhere(tmp_path, "program.pt2", pixels), pixels, **sampler)


@pytest.mark.parametrize(
    "form", ["baseline", *(pytest.param(f, marks=slow) for f in FORMS if f != "baseline")]
)
def test_onnx_elsewhere(tmp_path, form):
    pytest.importorskip("onnxruntime")
    model = tiny(**FORMS[form])
    exported = export_model(model, tmp_path / "model.onnx", size=SIZE)
    assert all(0 <= difference <= 1e-5 for difference in exported.differences.values())
    for batch in (1, 4):
        pixels = torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8)
        check(model, elsewhere(tmp_path, "model.onnx", pixels), pixels)


@slow
@pytest.mark.parametrize(
    ("form", "format", "opset"),
    [("baseline", "program", None), ("feature", "onnx", 19), ("prediction", "onnx", None)],
)
def test_open_height_and_width(tmp_path, form, format, opset):
    """One file for images of several sizes: at the largest the predictor's maps, below the network's."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model, path = tiny(**FORMS[form]), tmp_path / ("m.onnx" if format == "onnx" else "m.pt2")
    exported = export_model(model, path, format=format, size=(160, 128), dynamic=True, opset=opset)
    assert all(0 <= difference <= 1e-5 for difference in exported.differences.values())
    assert exported.description["input"]["shape"] == ["batch", 3, "height", "width"]
    run = formats.FORMATS[format].load(str(path))
    network = graph.ExportNetwork(model, 0, "maps", "float32", dict(tasks=list(model.tasks)), True).eval()
    pixels = torch.randint(0, 256, (2, 3, 160, 128), dtype=torch.uint8)
    check(model, run(normalise(pixels)), pixels)
    network(normalise(pixels[:1]))
    for height, width in ((64, 64), (96, 128), (160, 96)):
        images = normalise(pixels[..., :height, :width])
        for task, value in network(images).items():
            torch.testing.assert_close(run(images)[task], value, rtol=1e-4, atol=1e-4)
    if opset is not None:
        import onnx

        assert onnx.load(path).opset_import[0].version == opset


@slow
@pytest.mark.parametrize("form", ["feature", "baseline"])
@pytest.mark.usefixtures("compiler")
def test_machine_code_elsewhere(tmp_path, form):
    model = tiny(**FORMS[form])
    export_model(model, tmp_path / "model.pt2", format="pt2", size=SIZE)
    for batch in (1, 4):
        pixels = torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8)
        check(model, elsewhere(tmp_path, "model.pt2", pixels), pixels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_machine_code_of_a_gpu(tmp_path):
    model, path = tiny(), tmp_path / "model.pt2"
    assert max(export_model(model, path, format="pt2", size=SIZE, device="cuda").differences.values()) <= 1e-4
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_what_an_onnx_file_says(tmp_path):
    """Names, types and the batch are ONNX's own; the rest is JSON. Bytes go in where they are asked for."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = dict(size=(32, 32), tasks=["heat", "semseg"], what="logits", input="uint8")
    about = export_model(tiny(diffusion="none"), tmp_path / "model.onnx", **options).description
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["dmtl"]) == about
    [image] = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 3, 32, 32])
    found = [(output.name, output.type, output.shape) for output in session.get_outputs()]
    assert found == [
        ("heat", "tensor(float)", ["batch", 1, 32, 32]),
        ("semseg", "tensor(float)", ["batch", 4, 32, 32]),
    ]
    assert (tmp_path / "model.onnx").stat().st_size > 10000 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("form", ["feature", "baseline"])
def test_description(form):
    """JSON that says what goes in, what comes out, and with which sampler; no sampler in a baseline."""
    model = tiny(tasks=("semseg", "edge", "heat"), **FORMS[form])
    with torch.no_grad():
        maps = model.maps(torch.zeros(1, 3, 33, 47)).maps
    asked = dict(steps=1, sampler=None, eta=None)
    about = description(model, ["heat", "semseg", "edge"], maps, (33, 47), asked, 7, "maps", "float32")
    assert json.loads(json.dumps(about)) == about
    sampler = (
        dict(steps=1, sampler="ancestral", eta=None, seed=7)
        if form == "feature"
        else dict(steps=None, sampler=None, eta=None, seed=None)
    )
    assert {key: about[key] for key in sampler} == sampler
    assert about["input"]["shape"] == ["batch", 3, 33, 47] and about["input"]["std"] == [0.229, 0.224, 0.225]
    assert {t: (o["meaning"], o["dtype"]) for t, o in about["outputs"].items()} == dict(
        heat=("value", "float32"), semseg=("class id", "int64"), edge=("probability", "float32")
    )
    assert about["outputs"]["semseg"]["classes"] == list(TASKS["semseg"].classes)
    assert all(output["shape"] == ["batch", 33, 47] for output in about["outputs"].values())


def test_the_model_stays_as_it_is(tmp_path):
    model = tiny(diffusion="none").train().bfloat16()
    before = copy.deepcopy(model.state_dict())
    export_model(model, tmp_path / "model.pt2", format="program", size=(32, 32))
    assert model.training and model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(tasks=["semsag"]), "semseg, normals, heat, got 'semsag' (did you mean 'semseg'?)"),
        (dict(tasks=[]), "at least one of semseg, normals, heat"),
        (dict(size=(0, 32)), "size must be two positive numbers of pixels, H and W, got (0, 32)"),
        (dict(size=(32,)), "size must be two positive numbers"),
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(format="coreml"), "format must be one of onnx, pt2, program, got 'coreml'"),
        (dict(what="map"), "what must be one of maps, logits, got 'map'"),
        (dict(input="int8"), "input must be one of float32, uint8, got 'int8'"),
        (dict(path="model.onx"), "model.onx: must end in .onnx for format onnx"),
        (dict(path="model.onnx", format="program"), "model.onnx: must end in .pt2 for format program"),
        (dict(path="folder.onnx"), "folder.onnx: is a folder"),
        (dict(format="program", device="tpu"), "device must be"),
        (dict(format="pt2", dynamic=True), "dynamic is for formats onnx and program"),
        (dict(size=(128, 130), dynamic=True), "size must be multiples of 32 of at least 128"),
        (dict(size=(96, 128), dynamic=True), "at least 128 with dynamic, got [96, 128]"),
        (dict(opset=9), "opset must be at least 18, got 9"),
        (dict(format="program", opset=20), "opset is for format onnx, got format program"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused(tmp_path, options, words):
    (tmp_path / "folder.onnx").mkdir()
    suffix = ".pt2" if options.get("format") in ("pt2", "program") else ".onnx"
    path = tmp_path / options.pop("path", f"model{suffix}")
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_model(tiny(diffusion="none"), path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


def test_unwritable_path(tmp_path):
    """Refused before anything is traced, naming the file."""
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "model.pt2"
    with pytest.raises(OSError, match=re.escape(f"cannot write {path}")):
        export_model(tiny(diffusion="none"), path, format="program", size=(32, 32))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, package):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    with pytest.raises(ConfigError, match=rf"needs the package {package} .*extra dmtl\[onnx\]"):
        export_model(tiny(diffusion="none"), tmp_path / "model.onnx")


def test_too_large_for_onnx(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(formats, "_LARGEST_ONNX", 1000)
    with pytest.raises(ConfigError, match="holds at most 2 GB"):
        export_model(tiny(diffusion="none"), tmp_path / "model.onnx", size=(32, 32))
    assert list(tmp_path.iterdir()) == []


def test_missing_compiler(tmp_path, monkeypatch):
    import torch._inductor.config as config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match="needs a C.. compiler.*format program"):
        export_model(tiny(diffusion="none"), tmp_path / "model.pt2", format="pt2")


def test_a_wrong_file_is_not_left(tmp_path, monkeypatch):
    """A file whose noise is another's is found out; what stood there before stays."""
    path = tmp_path / "model.pt2"
    path.write_text("old")
    honest = graph.SharedNoise.__init__
    monkeypatch.setattr(graph.SharedNoise, "__init__", lambda self, seed, *o: honest(self, seed + 1, *o))
    with pytest.raises(
        ExportError, match="model.pt2: not written, because its .* differs from the model's by"
    ):
        export_model(tiny(), path, format="program", size=(32, 32), steps=1)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_a_model_that_is_not_finite(tmp_path):
    model = tiny(diffusion="none")
    model.initial.heads["heat"].bias.data.fill_(math.nan)
    with pytest.raises(DataError, match="heat: the model's output is not finite"):
        export_model(model, tmp_path / "model.pt2", format="program", size=(32, 32))


def test_differences_of_class_ids():
    task, ids = make_task("semseg", classes=3), torch.tensor([[[0, 2]]])
    logits = one_hot(ids, 3).permute(0, 3, 1, 2).float()
    logits[0, 1, 0, 1] = 1 - 2e-5
    assert task.map_difference(ids, ids, lambda: logits) == 0
    assert task.map_difference(ids, torch.tensor([[[0, 1]]]), lambda: logits) == pytest.approx(2e-5, rel=0.01)
    assert task.map_difference(ids, torch.tensor([[[1, 2]]]), lambda: logits) == 1
    assert task.map_difference(ids, torch.tensor([[[0, 3]]]), lambda: logits) == math.inf


def test_differences_of_numbers():
    value = torch.tensor([0.5, 200.0])
    assert relative_difference(value, value + 0.01) == pytest.approx(0.01, rel=1e-3)
    assert relative_difference(value, torch.tensor([0.5, 202.0])) == pytest.approx(0.01, rel=1e-3)
    assert math.isnan(relative_difference(value, torch.tensor([0.5, math.nan])))
    vector, turned = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)
    normals = make_task("normals")
    assert normals.map_difference(vector, turned, lambda: vector * 7) == 1
    assert normals.map_difference(vector, turned, lambda: vector * 1e-3) == pytest.approx(1e-3)


def test_wrong_shapes_and_types_are_found(monkeypatch):
    model, pixels = tiny(diffusion="none", tasks=("semseg",)), probe((32, 32))
    with torch.no_grad():
        images = torch.stack([normalise(image) for image in pixels])
        expected = parity.Expected(
            model, images, "maps", 0, dict(tasks=["semseg"], steps=None, eta=None, sampler=None)
        )
        right = expected.outputs["semseg"]
        assert expected.differences(Path("x"), lambda x: {"semseg": right[: len(x)]}, images) == {"semseg": 0}
        for wrong in (right.int(), right[:, :16], torch.zeros_like(right)):
            with pytest.raises(ExportError):
                expected.differences(Path("x"), lambda x, out=wrong: {"semseg": out[: len(x)]}, images)
