"""The GPU command cannot be run here; that its code works is shown at toy sizes on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.gpu_check"]


@pytest.mark.slow
def test_model_rows_at_toy_size(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [*COMMAND, "--device", "cpu", "--only", "model", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = {f"inference 1x64x64 {who} fp32" for who in ("published", "expert", "dmtl", "roofline all all")}
    assert wanted <= {row["name"] for row in rows}
    assert not [row for row in rows if "error" in row]
    assert all(row["torch"] == torch.__version__ for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.strip() == "gpu-check needs a CUDA device, but torch finds none here"
