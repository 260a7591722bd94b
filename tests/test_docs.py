"""The guides are followed to the letter: what they write is written, what they run is run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmtl import tasks
from dmtl.data import DATASETS
from dmtl.diffusion import SAMPLERS
from dmtl.nn.backbone import BACKBONES
from dmtl.train.objective import OBJECTIVES
from dmtl.train.weighting import WEIGHTINGS

ROOT = Path(__file__).resolve().parents[1]
FILES = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?```(?:python|yaml)\n(.*?)```", re.DOTALL)
LINE = re.compile(r"one line in `(\S+)`: `(.+?)`")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_adding_an_operator(tmp_path):
    guide = (ROOT / "docs" / "adding-an-operator.md").read_text()
    checkout = tmp_path / "dmtl"
    # what other tests may be writing just now, too
    ignored = shutil.ignore_patterns("*.so", ".*", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    files = FILES.findall(guide)
    assert len([name for name, _ in files if not name.startswith("tests/")]) == 3
    for name, text in files:
        (checkout / name).write_text(text)
    (name, line) = LINE.search(guide).groups()
    with open(checkout / name, "a") as file:
        file.write(line + "\n")

    def run(*command: str) -> None:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "DMTL_CUDA": "OFF",
        }
        environment |= {"DMTL_NATIVE": "1", "PYTHONPATH": str(checkout), "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        assert " passed" in done.stdout or command[1] == "setup.py"

    run(sys.executable, "setup.py", "build_ext", "--inplace")
    run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/ops/test_generic.py",
        "tests/ops/test_row_scale.py",
        "-k",
        "row_scale",
    )


def test_extending(tmp_path, monkeypatch):
    """Every block in order, in one namespace; what it registers is forgotten afterwards."""
    registries = (BACKBONES, DATASETS, OBJECTIVES, SAMPLERS, WEIGHTINGS)
    for registry in registries:
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(tasks, "KNOWN", tasks.KNOWN | {})
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    assert len(blocks) == 9
    namespace = {"__name__": "extending"}
    for file, text in blocks:
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(text)
        else:
            exec(text, namespace)
    for registry, name in zip(registries, ("strided", "discs", "smooth", "calming", "inverse"), strict=True):
        assert name in registry
