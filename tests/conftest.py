"""Fixtures shared by all tests."""

import os
import shutil
import subprocess
from pathlib import Path

import hypothesis
import pytest
import torch

# The same examples in every run, however slow the machine, and none kept from earlier runs; `pytest
# --hypothesis-profile=default` draws fresh ones.
hypothesis.settings.register_profile(
    "dmtl",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("dmtl")
if not torch.cuda.is_available():
    # Triton's interpreter must be chosen before anything imports Triton, whatever test comes first.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Tolerances of float32 mean float32, also in the library's convolutions on a GPU.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with golden vectors, split files and camvid: `$DMTL_SHARED`, or `shared` beside the
    checkout."""
    root = Path(os.environ.get("DMTL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not root.is_dir():
        pytest.skip(f"shared data not found at {root} (set DMTL_SHARED)")
    return root


@pytest.fixture(scope="session")
def golden_dir(shared_dir: Path) -> Path:
    """Outputs of the published network."""
    return shared_dir / "golden"


@pytest.fixture(scope="session")
def camvid_dir(shared_dir: Path) -> Path:
    """468 street images with semseg, sal and edge labels in the folder format."""
    return shared_dir / "data" / "camvid"


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory):
    """What was compiled or measured for other checkouts, compilers or processors is of no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        patch.setenv("DMTL_CACHE", str(tmp_path_factory.mktemp("choices")))
        yield


@pytest.fixture(scope="session")
def compiler():
    """What `torch.compile` needs on a CPU."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture
def one_thread():
    """Torch computes with one thread: bit-equal results need a fixed number, and small models no more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Tests draw fresh inputs from a known start, whatever ran before them."""
    torch.manual_seed(0)
