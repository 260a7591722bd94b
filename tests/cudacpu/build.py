"""Build `dmtl._core_cuda` for the CPU: every `.cu` file, unchanged but for its launches, compiled by g++ with
`cuda_runtime.h` of this folder and sanitizers: of addresses and undefined behaviour, or of threads.

A process that loads the module needs `environment()`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sanitizer:
    flags: tuple[str, ...]
    library: str
    options: dict[str, str]

    def libraries(self) -> list[str]:
        """Return the libraries that must be loaded before Python; empty if g++ lacks them here."""
        found = []
        for name in (self.library, "libstdc++.so"):
            done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
            found.append(done.stdout.strip())
        return found if all(Path(path).is_absolute() for path in found) else []


ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SOURCES = sorted((ROOT / "kernels/cuda").glob("*.cu"))
HEADERS = sorted((ROOT / "csrc/include/dmtl").glob("*.cuh"))
MODULE = f"_core_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
# Sanitizers: the flags of the compiler, the library that must be loaded before Python, and what it needs.
MEMORY = Sanitizer(
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "libasan.so",
    {
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
)
RACES = Sanitizer(("-fsanitize=thread",), "libtsan.so", {"TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1"})
_LAUNCH = re.compile(r"(\w+(?:<(?:[^<>]|<[^<>]*>)*>)?)\s*<<<(.*?)>>>", re.DOTALL)


def translated(text: str) -> str:
    """`kernel<T><<<grid, block, shared, stream>>>(arguments)` as C++."""
    return _LAUNCH.sub(r"::cudacpu::configured(\2, [&](const auto&... a) { \1(a...); })", text)


def write_sources(folder: Path, change: tuple[Path, str] | None = None) -> None:
    """Translate headers and sources; `change`: (file, text that it has instead)."""
    (folder / "dmtl").mkdir(parents=True, exist_ok=True)
    for path in (*HEADERS, *SOURCES):
        text = change[1] if change and change[0] == path else path.read_text()
        name = f"dmtl/{path.name}" if path.suffix == ".cuh" else f"{path.stem}.cpp"
        (folder / name).write_text(f'#line 1 "{path}"\n{translated(text)}')
    for name in ("cuda_runtime_api.h", "cuda_bf16.h", "cuda_fp16.h", "mma.h"):
        (folder / name).write_text("#pragma once\n#include <cuda_runtime.h>\n")
    (folder / "cuda_files.inc").write_text("".join(f"DMTL_FILE({path.stem})\n" for path in SOURCES))


def _run(*command) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:6000]


def compile_kernels(folder: Path, op: str, sanitizer: Sanitizer = MEMORY) -> None:
    includes = [f"-I{path}" for path in (folder, HERE, ROOT / "csrc/include")]
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-D__CUDACC__"]
    flags += ["-include", "cuda_runtime.h"]  # as nvcc does
    if os.uname().machine == "x86_64":
        flags.append("-mfma")
    _run("g++", *flags, *sanitizer.flags, *includes, "-c", folder / f"{op}.cpp", "-o", folder / f"{op}.o")


def _compile_binding(folder: Path) -> None:
    import pybind11

    includes = (folder, HERE, ROOT / "csrc/include", ROOT / "csrc/bindings")
    flags = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", '-DDMTL_CUDA_ARCHS="emulated"']
    flags += ['-DDMTL_CUDA_TOOLKIT="none"', f"-I{pybind11.get_include()}"]
    flags += [f"-I{sysconfig.get_path('include')}", *(f"-I{path}" for path in includes)]
    _run("g++", *flags, "-c", ROOT / "csrc/bindings/core_cuda.cpp", "-o", folder / "core_cuda.o")


def link(module: Path, objects: list[Path], sanitizer: Sanitizer = MEMORY) -> Path:
    _run("g++", *sanitizer.flags, "-shared", *objects, "-o", module)
    return module


def build(folder: Path, sanitizer: Sanitizer = MEMORY) -> Path:
    """Build the module in `folder` and return its path."""
    write_sources(folder)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_compile_binding, folder)]
        jobs += [pool.submit(compile_kernels, folder, path.stem, sanitizer) for path in SOURCES]
        for job in jobs:
            job.result()
    return link(folder / MODULE, sorted(folder.glob("*.o")), sanitizer)


def build_mutant(
    base: Path, folder: Path, path: Path, text: str, op: str, sanitizer: Sanitizer = MEMORY
) -> Path:
    """Build the module with one file changed; all other operators' objects are those in `base`."""
    write_sources(folder, (path, text))
    compile_kernels(folder, op, sanitizer)
    others = [other for other in sorted(base.glob("*.o")) if other.stem != op]
    return link(folder / MODULE, [folder / f"{op}.o", *others], sanitizer)


def environment(module: Path, order: int, sanitizer: Sanitizer = MEMORY) -> dict[str, str]:
    """Environment of a process whose backend `cuda` is the module, with threads and blocks in this order."""
    return os.environ | {
        "LD_PRELOAD": " ".join(sanitizer.libraries()),
        "CUDACPU_MODULE": str(module),
        "CUDACPU_ORDER": str(order),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **sanitizer.options,
    }
