"""`make gpu-check`: everything that needs a CUDA machine, in one command of under ten minutes.

Times the whole model (inference and training steps, compared with both baselines), runs the operators' and
the model's tests on every backend, the operator benchmarks and compute-sanitizer, prints a short table, and
appends one JSON object per number to a file: commit, versions, device, name, value, unit. Times are medians
of CUDA events; a part that fails its check gets a row with an "error" instead of a time.

`--device cpu` runs the same code at toy sizes, to test it; its numbers are meaningless.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import training
from .contenders import Case
from .facts import facts
from .training import TrainingCase, TrainingRace

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("model", "tests", "benchmarks", "sanitizer")


class Rows:
    """The result file: every row has what is needed to compare it later."""

    def __init__(self, path: Path, device: str):
        self.path, self.added = path, []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.common = facts(torch.device(device))

    def add(self, name: str, **values) -> None:
        row = {"name": name, **values, **self.common}
        self.added.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def print_table(self) -> None:
        """Print one line for each row of this run: operators as medians compared with eager torch, all else
        unchanged."""
        eager = {
            (row["op"], row["size"], row["dtype"]): row["median_us"]
            for row in self.added
            if row.get("contender") == "eager"
        }
        for row in self.added:
            if "op" in row:
                ratio = eager.get((row["op"], row["size"], row["dtype"]), math.nan) / row["median_us"]
                share = row.get("fraction_of_ceiling", math.nan)
                what = f"{row['op']} {row['size']} {row['dtype']} {row['contender']}"
                print(f"{what:64}{row['median_us']:12.1f} us {ratio:7.2f}x eager {share:6.0%} of ceiling")
            else:
                values = {key: row[key] for key in row if key not in ("name", *self.common)}
                print(f"{row['name']:64}{json.dumps(values)}")


def run_tests(rows: Rows, limit_s: int) -> bool:
    """Run the tests of the ops on every backend, forward, backward and captured; and of the model."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "8", "-m", "not slow"]
    command += ["tests/ops", "tests/models", "tests/diffusion", "tests/nn"]
    started = time.perf_counter()
    code, out = finished(command, limit_s)
    if code:
        print("\n".join(out.splitlines()[-60:]), file=sys.stderr)
    summary = (out.strip().splitlines() or ["no output"])[-1]
    rows.add("tests", summary=summary, rc=code, seconds=round(time.perf_counter() - started, 1))
    return code == 0


def run_sanitizer(rows: Rows, limit_s: int) -> bool:
    """Run compute-sanitizer on small calls of every op; record a skip if the tool is missing."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        rows.add("sanitizer", left_out="compute-sanitizer is not installed")
        return True
    passed = True
    for check in ("memcheck", "racecheck"):
        for backend in ("cuda", "triton"):
            command = [tool, "--tool", check, "--error-exitcode", "9", "--launch-timeout", "0"]
            command += [sys.executable, "-m", "tests.ops.small_calls", backend]
            started = time.perf_counter()
            code, out = finished(command, limit_s // 4)
            summary = next((x for x in out.splitlines() if "SUMMARY" in x), out.strip()[-300:])
            seconds = round(time.perf_counter() - started, 1)
            rows.add(f"{check} {backend}", summary=summary, rc=code, seconds=seconds)
            passed &= code in (0, 124)  # a timeout is not a finding
    return passed


def finished(command: list[str], limit_s: int) -> tuple[int, str]:
    """Run a command; return its exit status (124 if stopped after `limit_s`) and output."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
        return done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as stopped:
        out = stopped.stdout or b""
        return 124, out.decode(errors="replace") + f"\nstopped after {limit_s} s"


# The operator benchmarks that fit into the command's time: the published image and a training batch,
# compiled torch only on the first in bfloat16.
SELECTED = "(published-1 or training-ragged) and not (compiled and (float32 or training-ragged))"
COSTLY_FIRST = ("conv3x3", "cross_attention", "token_mlp")


def run_benchmarks(rows: Rows, limit_s: int, selected: str = SELECTED) -> None:
    """Run the operator benchmarks, one row per case and contender; file by file, so that a time limit only
    loses the last ones."""
    started = time.perf_counter()
    names = [path.stem.removeprefix("test_") for path in sorted((ROOT / "benchmarks").glob("test_*.py"))]
    for whole in ("inference", "training"):  # `compare_inference`, `time_training`
        names.remove(whole)
    for name in sorted(names, key=lambda name: name not in COSTLY_FIRST):
        left_s = int(limit_s - (time.perf_counter() - started))
        if left_s < 5:
            rows.add(f"benchmark {name}", left_out=f"no time left of {limit_s} s")
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "benchmarks.json"
            command = [sys.executable, "-m", "pytest", "-q", f"benchmarks/test_{name}.py", "--benchmark-only"]
            code, out = finished([*command, "-k", selected, f"--benchmark-json={report}"], left_s)
            if code:
                rows.add(f"benchmark {name}", error=out[-2000:], rc=code)
            if report.is_file():
                for bench in json.loads(report.read_text())["benchmarks"]:
                    rows.add(bench["name"], **bench["extra_info"])


def compare_inference(rows: Rows, device: str, limit_s: int) -> None:
    """Run `python -m benchmarks`: contenders and roofline for 512x512, five tasks, S = 2.

    Each contender is checked against fp32 first. A time limit only loses the last ones.
    """
    words = ["--batch", "1", "32", "8"] if device == "cuda" else ["--quick", "--size", "64", "64"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", "--device", device, "--out", folder, *words]
        code, out = finished([*command, "--parts", "contenders", "roofline"], limit_s)
        if code:
            rows.add("inference", error=out[-2000:], rc=code)
        written = Path(folder) / "bench.jsonl"
        for line in written.read_text().splitlines() if written.is_file() else ():
            row = json.loads(line)
            who = row.get("contender") or f"roofline {row['stage']} {row['operator']}"
            size = "x".join(map(str, (row["batch"], *row["size"])))
            rows.add(f"inference {size} {who} {row['precision']}", **row)


def time_training(rows: Rows, device: str, toy: bool) -> None:
    """Time training steps of all contenders, one label an image and random labels; our step must never wait
    for the device."""
    small = {"width": 32, "backbone_width": 16, "blocks": 1, "decoder_blocks": 1} if toy else {}
    case = Case(size=(64, 64) if toy else (512, 512), device=device, options=small)
    wanted = [("published", "fp32"), ("expert", "bf16"), ("dmtl", "bf16")]
    if toy:
        wanted = training.names(torch.device(device))
    never_waits(rows, case.but(batch=5), device)
    for batch in (5,) if toy else (6, 24):
        for labels in ("one", "random"):
            race = TrainingRace(
                TrainingCase(case.but(batch=batch), labels), wanted, modes=() if toy else ("default",)
            )
            for _ in range(2 if toy else 7):
                race.round()
            size = "x".join(map(str, (batch, *case.size)))
            for row in race.result():
                rows.add(f"training {labels} {size} {row['contender']} {row['precision']}", **row)
            del race
            if device == "cuda":
                torch.cuda.empty_cache()
    for name, precision in () if toy else wanted:
        row = training.peak(TrainingCase(case.but(batch=6)), name, precision, modes=())
        rows.add(f"training memory {name} {precision}", **row)


def never_waits(rows: Rows, case, device: str) -> None:
    """Record an error if our step has a hidden host synchronisation."""
    trainee, batch = training.ours(case, "bf16"), TrainingCase(case).batch()
    trainee.step(batch)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        trainee.step(batch)
    except RuntimeError as error:
        rows.add("training step, no host synchronisation", error=str(error).splitlines()[0])
    else:
        rows.add("training step, no host synchronisation", checked=device == "cuda")
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")) / "gpu.jsonl"
    parser.add_argument("--out", type=Path, default=default, help="file to append rows to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--only",
        choices=PARTS,
        nargs="*",
        default=PARTS,
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check needs a CUDA device, but torch finds none here", file=sys.stderr)
        return 2
    rows = Rows(args.out, args.device)
    passed = True
    # TF32 is requested by name; everything else is checked by the tolerances of float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if "model" in args.only:  # first: the numbers that only a GPU can give
        compare_inference(rows, args.device, limit_s=220)
        time_training(rows, args.device, toy=args.device == "cpu")
    if "tests" in args.only:
        passed = run_tests(rows, limit_s=130)
    if "benchmarks" in args.only:
        run_benchmarks(rows, limit_s=120)
    if "sanitizer" in args.only and args.device == "cuda":
        passed &= run_sanitizer(rows, limit_s=80)
    rows.print_table()
    print(f"rows in {args.out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
