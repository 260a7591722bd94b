"""The native code as compilers and sanitizers see it: no warnings, no spills in CUDA kernels, no bad access
when the operator tests run. Builds of their own, so all of this is slow; each part is skipped where its tool
is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
CUDA_SOURCES = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
TOOLS = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
if (triton := importlib.util.find_spec("triton")) is not None:  # brings one along
    TOOLS.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
CUOBJDUMP = next(filter(None, (shutil.which("cuobjdump", path=path) for path in TOOLS)), None)
WIDE = r"\w*?(?:noising_last|forward|backward)_kernel"
CMAKE = [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else [shutil.which("cmake")]
needs_cmake = pytest.mark.skipif(
    CMAKE[0] is None or shutil.which("g++") is None or importlib.util.find_spec("pybind11") is None,
    reason="needs cmake, g++ and pybind11",
)


def run(command: list, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=3 * 3600, **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done


def build_core(folder: Path, *settings: str) -> Path:
    """The CPU module built by CMake with these settings."""
    import pybind11

    run(
        [
            *CMAKE, "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_COMPILER=g++",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *settings,
        ]
    )  # fmt: skip
    run([*CMAKE, "--build", folder, "--target", "_core", "--parallel", "2"])
    [library] = folder.glob("_core.*.so")
    return library


@needs_cmake
def test_no_warnings(tmp_path):
    """-Wall -Wextra -Wconversion -Werror, for every instruction set and the binding."""
    build_core(tmp_path, "-DDMTL_STRICT=ON")


def mirror(target: Path, core: Path) -> None:
    """The checkout as the tests need it, with another CPU module and no CUDA module."""
    for name in ("csrc", "kernels", "tests", "pyproject.toml"):
        (target / name).symlink_to(ROOT / name)
    (target / "dmtl").mkdir()
    for path in (ROOT / "dmtl").iterdir():
        if not path.name.startswith("_core"):
            (target / "dmtl" / path.name).symlink_to(path)
    shutil.copy(core, target / "dmtl" / core.name)


@needs_cmake
def test_sanitizers(tmp_path):
    """The tests of the C++ operators and metrics under the address and undefined-behaviour sanitizers."""
    runtimes = [
        run(["g++", f"-print-file-name={name}"]).stdout.strip() for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(path).is_absolute() for path in runtimes):
        pytest.skip("g++ has no address sanitizer here")
    (tmp_path / "tree").mkdir()
    mirror(tmp_path / "tree", build_core(tmp_path / "build", "-DDMTL_SANITIZE=ON"))
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        # Python and torch leave much to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "2",
    }
    where = "from dmtl.runtime import native; print(native.core().__file__)"
    loaded = run([sys.executable, "-c", where], cwd=tmp_path / "tree", env=environment).stdout
    assert loaded.startswith(str(tmp_path / "tree")), loaded
    chosen = "(cpu or instruction_sets) and not opcheck and not serves"
    rooms = ("tests/ops", "tests/metrics")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *rooms, "-k", chosen]
    done = run(command, cwd=tmp_path / "tree", env=environment)
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-2000:]


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.stem)
def test_cuda_sources(tmp_path, source, arch):
    """Host code without warnings; kernels without stack frames and spills, with accesses as wide as meant."""
    done = run(
        [
            NVCC, f"-arch={arch}", "-std=c++17", "-O3", "--fmad=false", "-I", ROOT / "csrc" / "include",
            "-Xcompiler", "-Wall,-Wextra,-Werror,-fPIC", "-Xptxas", "-v", "-c", source,
            "-o", tmp_path / "kernels.o",
        ]
    )  # fmt: skip
    report = done.stdout + done.stderr
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert used, report[-3000:]
    names = re.findall(r"Compiling entry function '(\w+)'", report)
    bad = [name for name, sizes in zip(names, used, strict=False) if sizes != ("0", "0", "0")]
    assert set(used) == {("0", "0", "0")}, f"stack frames or spills in {bad}"
    assert "warning" not in report, report[-3000:]
    if CUOBJDUMP is not None:
        code = run([CUOBJDUMP, "-sass", tmp_path / "kernels.o"]).stdout
        check_vectors(source.stem, re.split(r"\n\t\tFunction : ", code)[1:])


def check_vectors(op: str, functions: list[str]) -> None:
    """Kernels on channels-last maps move 16 bytes at a time, but for a sum of noisy_tokens' backward."""
    vectors = [code for code in functions if re.match(WIDE, code)]
    assert vectors or op in ("condition_tokens", "decode_map")
    for code in vectors:
        name = code.split("\n")[0]
        stores = re.findall(r"\bSTG\.[A-Z0-9.]+", code)
        narrow = [store for store in stores if ".128" not in store]
        assert len(stores) > len(narrow), name
        parts = op == "noisy_tokens" and "backward" in name  # float32 sums go out one by one
        assert set(narrow) <= ({"STG.E"} if parts else set()), (name, narrow)
        assert not re.findall(r"\bLDG\.E\.U?(?:16|8)\b", code), name
