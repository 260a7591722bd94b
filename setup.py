"""Build the native modules with CMake, if there is a compiler. Metadata is in pyproject.toml.

    DMTL_NATIVE=auto|1|0        dmtl._core (C++): build if possible, fail without, or leave out
    DMTL_CUDA=AUTO|ON|OFF       dmtl._core_cuda: build if nvcc is there, fail without, or leave out
    DMTL_CUDA_ARCHS=80;90a      CUDA architectures

One Extension per shared library, because an editable install drops undeclared ones. Without the native
modules every op still works through its torch reference.

Everything is built in build/<platform>-<python>, whoever asks, so that a second installation compiles only
what has changed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
BACKENDS = ("cpu", "cuda", "triton")


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, default).strip().lower()
    if value not in allowed:
        raise SystemExit(f"{name} must be one of {', '.join(allowed)}, got {value}")
    return value


NATIVE = choice("DMTL_NATIVE", "auto", ("auto", "1", "0"))
CUDA = choice("DMTL_CUDA", "auto", ("auto", "on", "off"))
CUDA_ARCHS = os.environ.get("DMTL_CUDA_ARCHS", "80;90a")


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for home in [*homes, "/usr/local/cuda"]:
        candidate = Path(home) / "bin" / "nvcc"
        if candidate.is_file():
            return str(candidate)
    return shutil.which("nvcc")


def find_ninja() -> str | None:
    """From the build environment, which need not be on PATH."""
    beside_python = Path(sys.executable).with_name("ninja")
    return shutil.which("ninja") or (str(beside_python) if beside_python.is_file() else None)


def pybind11_config() -> Path:
    """Return the folder of pybind11's CMake files, copied to a place that stays.

    pip installs build requirements into a folder with another name every time. The headers' path is part of
    the compiler's command line, so a new one would compile the bindings again.
    """
    import pybind11

    package, config = Path(pybind11.__file__).parent, Path(pybind11.get_cmake_dir())
    if not config.is_relative_to(package):
        return config
    kept = BUILD / f"pybind11-{pybind11.__version__}"
    if not kept.is_dir():
        partial = BUILD / "pybind11.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(package, partial)
        partial.rename(kept)
    return kept / config.relative_to(package)


def extensions() -> list[Extension]:
    if NATIVE == "0":
        if CUDA == "on":
            raise SystemExit("DMTL_CUDA=ON needs the native build: DMTL_NATIVE must be auto or 1, got 0")
        return []
    found = [Extension("dmtl._core", sources=[], optional=NATIVE == "auto" and CUDA != "on")]
    if CUDA == "on" or (CUDA == "auto" and find_nvcc()):
        found.append(Extension("dmtl._core_cuda", sources=[], optional=CUDA == "auto"))
    return found


class CMakeBuild(build_ext):
    """One CMake tree for each extension, so that a failing CUDA build does not take the CPU one along."""

    def build_extension(self, ext: Extension) -> None:
        target = ext.name.rpartition(".")[2]
        build_dir = BUILD / target
        build_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._cmake(target, build_dir)
        except (OSError, subprocess.CalledProcessError) as error:
            cause = "cmake failed, see above" if isinstance(error, subprocess.CalledProcessError) else error
            reason = f"{ext.name} could not be built: {cause}"
            if ext.optional:
                print(
                    f"warning: {reason}; dmtl works without it, slower (`dmtl info` explains)",
                    file=sys.stderr,
                )
            raise CompileError(reason) from error
        [library] = [
            p
            for p in build_dir.iterdir()
            if p.name.startswith(f"{target}.") and p.suffix in (".so", ".pyd", ".dylib")
        ]
        destination = Path(self.get_ext_fullpath(ext.name)).resolve()
        destination.parent.mkdir(parents=True, exist_ok=True)
        # A running process may have the old one mapped: never write into it.
        destination.unlink(missing_ok=True)
        shutil.copyfile(library, destination)

    def _cmake(self, target: str, build_dir: Path) -> None:
        cmake = [sys.executable, "-m", "cmake"] if _has_module("cmake") else ["cmake"]
        configure = [
            *cmake, "-S", str(ROOT), "-B", str(build_dir),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_config()}",
            f"-DDMTL_WITH_CUDA={'ON' if target == '_core_cuda' else 'OFF'}",
        ]  # fmt: skip
        if ninja := find_ninja():
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if target == "_core_cuda":
            configure.append(f"-DDMTL_CUDA_ARCHS={CUDA_ARCHS}")
            if nvcc := find_nvcc():
                configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        configured_before = (build_dir / "CMakeCache.txt").is_file()
        if subprocess.run(configure, check=not configured_before).returncode:
            # The folder was configured for another place or another generator.
            subprocess.run([*configure, "--fresh"], check=True)
        subprocess.run(
            [*cmake, "--build", str(build_dir), "--target", target, "--config", "Release", "--parallel"],
            check=True,
        )


def _has_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


setup(
    packages=[
        *find_packages(include=["dmtl", "dmtl.*"]),
        *(f"dmtl.kernels.{backend}" for backend in BACKENDS),
    ],
    # The device code lives beside the package in the checkout and inside it once installed.
    package_dir={f"dmtl.kernels.{backend}": f"kernels/{backend}" for backend in BACKENDS},
    ext_modules=extensions(),
    cmdclass={"build_ext": CMakeBuild},
)
