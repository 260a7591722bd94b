"""What goes into a wheel and how the backends are found: metadata read, setup.py's lists and the import shim
exercised."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def setup_listing(**environment: str) -> subprocess.CompletedProcess:
    """Packages, their folders and extensions that setup.py would hand to setuptools."""
    program = (
        "import setuptools, runpy\n"
        "def show(**options):\n"
        "    folders = options['package_dir']\n"
        "    for package in sorted(options['packages']):\n"
        "        print('package', package, folders.get(package, ''))\n"
        "    for each in options['ext_modules']: print('extension', each.name, each.optional)\n"
        "setuptools.setup = show\n"
        "runpy.run_path('setup.py')\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DMTL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=clean | environment,
        timeout=600,
    )


def test_packages_and_extensions():
    lines = setup_listing(DMTL_CUDA="ON").stdout.splitlines()
    for backend in ("cpu", "cuda", "triton"):
        assert f"package dmtl.kernels.{backend} kernels/{backend}" in lines
    assert {"package dmtl ", "package dmtl.ops ", "package dmtl.kernels "} <= set(lines)
    assert all(line.startswith(("package dmtl", "extension dmtl")) for line in lines)
    assert [line for line in lines if line.startswith("extension")] == [
        "extension dmtl._core False",
        "extension dmtl._core_cuda False",
    ]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DMTL_NATIVE": "0"}, []),
        ({"DMTL_NATIVE": "auto", "DMTL_CUDA": "OFF"}, ["extension dmtl._core True"]),
        ({"DMTL_NATIVE": "1", "DMTL_CUDA": "off"}, ["extension dmtl._core False"]),
    ],
)
def test_build_switches(environment, expected):
    lines = setup_listing(**environment).stdout.splitlines()
    assert [line for line in lines if line.startswith("extension")] == expected


def test_bad_build_switches():
    assert "DMTL_NATIVE must be one of auto, 1, 0, got yes" in setup_listing(DMTL_NATIVE="yes").stderr
    assert "DMTL_CUDA=ON needs the native build" in setup_listing(DMTL_NATIVE="0", DMTL_CUDA="ON").stderr


def test_headers_stay_where_they_are(monkeypatch, tmp_path):
    """pip builds in another folder every time: the path of pybind11's headers must not be part of it."""
    pybind11 = pytest.importorskip("pybind11")
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    spec = importlib.util.spec_from_file_location("dmtl_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    monkeypatch.setattr(setup, "BUILD", tmp_path / "build")
    found = []
    for name in ("one", "two"):
        package = tmp_path / name / "pybind11"
        shutil.copytree(Path(pybind11.__file__).parent, package)
        monkeypatch.setattr(pybind11, "__file__", str(package / "__init__.py"))
        monkeypatch.setattr(
            pybind11, "get_cmake_dir", lambda package=package: package / "share/cmake/pybind11"
        )
        config = setup.pybind11_config()
        found.append((config, (config / "pybind11Config.cmake").stat().st_mtime_ns))
    assert found[0] == found[1] and found[0][0].is_relative_to(tmp_path / "build")
    assert (config.parents[2] / "include" / "pybind11" / "pybind11.h").is_file()


def test_metadata():
    project = PROJECT["project"]
    assert project["scripts"]["dmtl"] == "dmtl.cli:main"
    assert importlib.import_module("dmtl.cli").main
    names = {requirement.split(">")[0].split("=")[0].strip() for requirement in project["dependencies"]}
    # torchvision and timm would replace a CPU build of torch; they are extras at most.
    assert names == {"torch", "numpy", "safetensors", "tyro", "rich", "pillow", "jinja2", "pyyaml"}
    assert not any("torch" in requirement for requirement in PROJECT["build-system"]["requires"])
    assert PROJECT["tool"]["setuptools"]["include-package-data"] is False


def test_one_version():
    """`dmtl.__version__` is the only version; other files that name it agree."""
    import dmtl

    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dmtl.__version__"}
    assert f"\nversion: {dmtl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{dmtl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_lowest_versions_are_documented():
    text = (ROOT / "docs" / "install.md").read_text()
    for requirement in PROJECT["project"]["dependencies"]:
        name, lowest = requirement.split(">=")
        assert f"\n| {name} | {lowest} |" in text, requirement


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_the_sdist_has_every_folder():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {path.partition("/")[0] for path in listed.splitlines() if "/" in path}
    grafted = re.findall(r"^graft (.+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    assert folders - {"dmtl"} == set(grafted)  # setuptools itself adds dmtl


def test_data_files_are_declared():
    """Whatever lies in dmtl/ beside Python and built modules (templates, styles) matches package-data."""
    patterns = [
        pattern for each in PROJECT["tool"]["setuptools"]["package-data"].values() for pattern in each
    ]
    for path in (ROOT / "dmtl").rglob("*"):
        if path.is_file() and path.suffix not in {".py", ".pyc", ".so", ".pyd", ".dylib"}:
            assert any(path.match(pattern) for pattern in patterns), f"{path} would be left out of the wheel"


@pytest.mark.parametrize("installed", [False, True])
def test_backends_are_found(tmp_path, installed):
    """Next to dmtl in a checkout, and inside it once installed; then another `kernels` is not looked at."""
    import dmtl.kernels

    package = tmp_path / "dmtl" / "kernels"
    package.mkdir(parents=True)
    (tmp_path / "dmtl" / "__init__.py").write_text("")
    shutil.copy(dmtl.kernels.__file__, package / "__init__.py")
    for folder, owner in ((tmp_path / "kernels", "checkout"), (package, "installed")):
        if installed or owner == "checkout":
            (folder / "cpu").mkdir(parents=True)
            (folder / "cpu" / "__init__.py").write_text(f"print({owner!r})")
    program = "import dmtl.kernels.cpu; print(len(dmtl.kernels.__path__))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.split() == (["installed", "1"] if installed else ["checkout", "2"]), done.stderr


def test_one_name_everywhere():
    """An op has the same basename in dmtl/ops, kernels, csrc, tests and benchmarks."""
    from dmtl.ops.registry import REGISTRY

    from .ops.tools import FOR_CPUS

    for op in REGISTRY:
        places = [
            f"dmtl/ops/{op}.py",
            f"kernels/cpu/{op}.py",
            f"kernels/triton/{op}.py",
            f"csrc/cpu/{op}.cpp",
        ]
        if op in FOR_CPUS:
            places.remove(f"kernels/triton/{op}.py")
        places += [f"tests/ops/test_{op}.py", f"benchmarks/test_{op}.py"]
        assert [place for place in places if not (ROOT / place).is_file()] == []
