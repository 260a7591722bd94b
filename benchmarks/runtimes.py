"""The network in other runtimes on a CPU: OpenVINO and ONNX Runtime, from ONNX files.

There are two files of a network: the one that `dmtl export` writes, and the published execution
(`published.py`) traced by the same code. Both hold their noise, that of sample 0 for every image, so a
runtime draws none. The batch is open in the files; a runtime gets it as a constant, and as many threads as
torch has.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from dmtl.engine.export import export_model
from dmtl.engine.export.formats import Onnx
from dmtl.engine.export.graph import traced

from .cases import Case, Noise, drawn_noise, shared_noise
from .published import Published

FROM_PUBLISHED = ("published-onnxruntime", "published-openvino")
FROM_EXPORT = ("onnxruntime", "openvino")
NAMES = (*FROM_PUBLISHED, *FROM_EXPORT)
_PRECISIONS = {"onnxruntime": {"fp32": ""}, "openvino": {"fp32": "f32", "bf16": "bf16"}}
"""Runtime -> precision -> its name there."""
_WRITERS = ("onnx", "onnxscript", "onnxruntime")  # what writing and checking a file needs

Run = Callable[..., Mapping[str, Tensor]]

_files: dict[str, Path] = {}  # written by this process
_folder: list[tempfile.TemporaryDirectory] = []  # of these files, once there is one


def names(precisions: Sequence[str], of: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    """Return (contender, precision) of all these contenders in those of the precisions that they have."""
    return [(name, p) for name in of for p in _PRECISIONS[_runtime(name)] if p in precisions]


def missing(name: str, precision: str) -> str | None:
    """Return why a contender cannot take part on this machine; None if it can."""
    for package in dict.fromkeys((_runtime(name), *_WRITERS)):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if precision == "bf16" and not _has_bf16():
        return "OpenVINO finds no bf16 units in this processor"
    return None


def load(name: str, path: Path, image: Tensor, precision: str) -> tuple[Run, str]:
    """Load a file for images like `image`; return the contender's function, and how it computes."""
    source = "the published execution" if name in FROM_PUBLISHED else "dmtl export"
    if _runtime(name) == "onnxruntime":
        return _onnxruntime(path, image), f"ONNX Runtime, file of {source}"
    return _openvino(path, image, precision), f"OpenVINO, file of {source}, latency, one stream"


def file_of(name: str, case: Case, model: nn.Module | None = None) -> Path:
    """Return the file that a contender runs; write it unless this process has.

    Args:
        model: of the case; default: it is built.
    """
    case = case.but(batch=1, device="cpu")
    write = _write_published if name in FROM_PUBLISHED else _write_export
    key = json.dumps([write.__name__, asdict(case)])
    if key not in _files:
        if not _folder:
            _folder.append(tempfile.TemporaryDirectory(prefix="dmtl-benchmarks-"))
        path = Path(_folder[0].name) / f"{len(_files)}.onnx"
        write(case.build() if model is None else model, case, path)
        _files[key] = path
    return _files[key]


def _runtime(name: str) -> str:
    return name.rpartition("-")[2]


def _write_export(model: nn.Module, case: Case, path: Path) -> None:
    export_model(model, path, size=case.size, tasks=case.tasks, steps=case.steps)


def _write_published(model: nn.Module, case: Case, path: Path) -> None:
    with torch.no_grad():
        program = traced(_PublishedNetwork(model, case).eval(), case.but(batch=2).image())
    sides = {"input": {"shape": ["batch", 3, *case.size]}}
    Onnx.save(program, str(path), case.tasks or tuple(model.tasks), sides)


class _PublishedNetwork(nn.Module):
    """The published execution with stored noise: images -> {task: map}."""

    def __init__(self, model: nn.Module, case: Case):
        super().__init__()
        self.model, self.case = model, case
        image = case.image()
        draws = len(model.mtdnet.plan(image.device, case.steps).levels)
        for task, noise in drawn_noise(model, image, draws, shared_noise(image)).items():
            self.register_buffer(f"noise_{task}", noise)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        noise = {task: getattr(self, f"noise_{task}") for task in self.model.tasks}
        return Published(self.model, noise, self.case.steps).maps(image, self.case.tasks)


def _onnxruntime(path: Path, image: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", image.shape[0])
    # The other contenders need the processor after a call.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(image: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        arrays = session.run(outputs, {"image": image.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, arrays, strict=True)}

    return run


def _openvino(path: Path, image: Tensor, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({0: list(image.shape)})
    wanted = _PRECISIONS["openvino"][precision]
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,  # by default bf16 where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != wanted:
        raise RuntimeError(f"OpenVINO computes in {used}, not in {wanted}")
    request = compiled.create_infer_request()
    outputs = [output.any_name for output in compiled.outputs]

    def run(image: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        # Maps are valid until the next call.
        found = request.infer([image.numpy()], share_inputs=True, share_outputs=True)
        return {name: torch.from_numpy(found[name]) for name in outputs}

    return run


def _has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
