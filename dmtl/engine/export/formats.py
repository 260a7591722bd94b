"""File formats: how each is written, and how it is run without this package.

A format has `suffix`; `check(device)`, which raises ConfigError if it cannot be created here;
`save(program, path, tasks, about)`; and `load(path)`, which returns a function from images to {task: output}.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dmtl.engine.export.parity import LoadedModel
from dmtl.errors import ConfigError

ENTRY = "dmtl"  # metadata key of the description
LOWEST_OPSET = 18  # of torch's exporter
_LARGEST_ONNX = 2**31 - 2**24  # bytes; a message of protobuf holds less than 2 GB


class Onnx:
    """ONNX, run by onnxruntime on the CPU, and by anything else that reads ONNX."""

    suffix = ".onnx"

    @staticmethod
    def check(device: torch.device) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ConfigError(
                    f"format onnx needs the package {package} ({error}): install the extra dmtl[onnx]"
                ) from None

    @staticmethod
    def save(
        program: ExportedProgram,
        path: str,
        tasks: Sequence[str],
        about: Mapping[str, Any],
        opset: int | None = None,
    ) -> None:
        stored = sum(x.numel() * x.element_size() for x in program.state_dict.values())
        if stored > _LARGEST_ONNX:
            raise ConfigError(
                f"format onnx holds at most 2 GB, got {stored / 1e9:.1f} GB of weights and noise; "
                "choose a smaller size, fewer steps, or format pt2"
            )
        sides = about["input"]["shape"]
        with _quiet("torch.onnx"):
            model = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=list(tasks),
                dynamic_shapes=({place: s for place, s in enumerate(sides) if isinstance(s, str)},),
                opset_version=opset,
            )
        assert model is not None  # only the tracing exporter returns None, not dynamo=True
        model.model.metadata_props[ENTRY] = json.dumps(about)
        model.save(path, external_data=False)

    @staticmethod
    def load(path: str) -> LoadedModel:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor) -> dict[str, Tensor]:
            arrays = session.run(None, {"image": images.cpu().numpy()})
            return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

        return run


class Pt2:
    """Machine code for one kind of device (AOTInductor), run by PyTorch from Python or C++."""

    suffix = ".pt2"

    @staticmethod
    def check(device: torch.device) -> None:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise ConfigError(
                "format pt2 needs a C++ compiler, and none was found: install g++, name yours in the "
                "environment variable CXX, or choose format program"
            ) from None

    @staticmethod
    def save(program: ExportedProgram, path: str, tasks: Sequence[str], about: Mapping[str, Any]) -> None:
        from torch._inductor.exc import CppCompileError, InductorError

        package = io.BytesIO()
        metadata = {"aot_inductor.metadata": {ENTRY: json.dumps(about)}}
        try:
            with _quiet("torch._inductor"):
                torch._inductor.aoti_compile_and_package(
                    program, package_path=package, inductor_configs=metadata
                )
        except InductorError as error:
            if isinstance(error.inner_exception, CppCompileError):
                said = str(error.inner_exception).strip().splitlines()[-1]
                raise ConfigError(f"format pt2 needs a working C++ compiler, yours said: {said}") from error
            raise
        Path(path).write_bytes(package.getbuffer())

    @staticmethod
    def load(path: str) -> LoadedModel:
        return _on_cpu(torch._inductor.aoti_load_package(path))


class Program:
    """A graph of plain PyTorch operators (`torch.export`), to be run, compiled or lowered further."""

    suffix = ".pt2"

    @staticmethod
    def check(device: torch.device) -> None:
        pass

    @staticmethod
    def save(program: ExportedProgram, path: str, tasks: Sequence[str], about: Mapping[str, Any]) -> None:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={f"{ENTRY}.json": json.dumps(about)})
        Path(path).write_bytes(content.getbuffer())

    @staticmethod
    def load(path: str) -> LoadedModel:
        return _on_cpu(torch.export.load(path).module())


FORMATS: dict[str, type[Onnx | Pt2 | Program]] = {"onnx": Onnx, "pt2": Pt2, "program": Program}


def _on_cpu(network: Any) -> LoadedModel:
    return lambda images: {task: value.cpu() for task, value in network(images).items()}


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Silence the tools' internal messages."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
