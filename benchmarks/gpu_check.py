"""`make gpu-check`: everything that needs a CUDA machine, in one command of under ten minutes.

Each part is a process with a time limit. It appends its rows to a file as soon as it has them, one JSON
object each: commit, versions, device, name, values. If a part fails or runs out of time, a row says so, and
the next part starts. Quick parts and those of our own code come first, and the expert, whose compiler takes
minutes, comes last. It needs torch, Triton, pytest and hypothesis, but not the packages of the command line.

`--device cpu` runs the same code at toy sizes, to test it; the resulting numbers are meaningless.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from dmtl.errors import one_line
from dmtl.ops.registry import REGISTRY

from . import training
from .cases import PUBLISHED, Case
from .facts import facts
from .training import TrainingCase, TrainingRace

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["--cases", PUBLISHED, "--precision", "bf16"]  # of `python -m benchmarks`
TOY_WORDS = ["--quick", "--size", "64", "64"]


class Rows:
    """The file with the results: every row has the facts that are needed to compare it later."""

    def __init__(self, path: Path, device: str):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.common = facts(torch.device(device))

    def add(self, name: str, **values) -> None:
        row = {"name": name, **values, **self.common}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def print_table(self, begin: int) -> None:
        """Print a line for each row after the first `begin` bytes of the file.

        Operators are printed as medians and ratios to eager torch, other rows as they are.
        """
        with open(self.path, encoding="utf-8") as file:
            file.seek(begin)
            added = [json.loads(line) for line in file]
        eager = {
            (row["op"], row["size"], row["dtype"]): row["median_us"]
            for row in added
            if row.get("contender") == "eager"
        }
        for row in added:
            if "op" in row:
                ratio = eager.get((row["op"], row["size"], row["dtype"]), math.nan) / row["median_us"]
                share = row.get("fraction_of_ceiling", math.nan)
                what = f"{row['op']} {row['size']} {row['dtype']} {row['contender']}"
                print(f"{what:64}{row['median_us']:12.1f} us {ratio:7.2f}x eager {share:6.0%} of ceiling")
            else:
                values = {key: row[key] for key in row if key not in ("name", *self.common)}
                print(f"{row['name']:64}{json.dumps(values)}")


def finished(command: Sequence[str], limit_s: float, **variables: str) -> tuple[int, str]:
    """Run a command; return its exit status and output.

    124: it and its children were stopped after `limit_s`.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | variables, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=limit_s)
        return process.returncode, out
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return 124, process.communicate()[0] + f"\nstopped after {limit_s:.0f} s"


def run_all(rows: Rows, commands: Mapping[str, Sequence[str]], limit_s: float, **variables: str) -> bool:
    """Run the commands, eight at a time, and add a row for each: its last line, or the end of its output."""
    until = time.perf_counter() + limit_s
    variables = {"OMP_NUM_THREADS": "1"} | variables

    def one(name: str) -> bool:
        started = time.perf_counter()
        code, out = finished(commands[name], max(1.0, until - started), **variables)
        lines = out.strip().splitlines() or ["no output"]
        said = {"summary": lines[-1]} if code == 0 else {"error": "\n".join(lines)[-2000:], "rc": code}
        rows.add(name, **said, seconds=round(time.perf_counter() - started, 1))
        return code == 0

    with ThreadPoolExecutor(8 if torch.cuda.is_available() else 2) as pool:
        return all(list(pool.map(one, commands)))


def small_calls(rows: Rows, device: str, limit_s: float) -> bool:
    """Run small calls of every operator, each in its own process, so that a crash does not affect the
    others."""
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    program = [sys.executable, "-m", "tests.ops.small_calls"]
    commands = {
        f"small calls {op} {backend}": [*program, backend, op] for op in REGISTRY for backend in backends
    }
    return run_all(rows, commands, limit_s, CUDA_LAUNCH_BLOCKING="1")


def run_tests(rows: Rows, device: str, limit_s: float) -> bool:
    """Run the tests of each operator in a process, then those of the model and all others marked `gpu`."""
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow"]
    generic = ["tests/ops/test_generic.py", "tests/ops/test_gpu.py"]
    commands = {f"tests {op}": [*program, *generic, "-k", f"{op}-"] for op in REGISTRY}
    commands["tests model"] = [*program, "tests/models/test_forward.py", "-k", "every_backend"]
    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py"))
              if "mark.gpu" in path.read_text() and path.parent.name != "ops"]  # fmt: skip
    if device == "cuda":
        commands["tests marked gpu"] = [*program[:-1], "gpu", *marked, "--continue-on-collection-errors"]
    else:
        commands = {name: commands[name] for name in ("tests q_sample", "tests model")}
    return run_all(rows, commands, limit_s)


def run_sanitizer(rows: Rows, device: str, limit_s: float) -> bool:
    """Run compute-sanitizer over small calls of the CUDA kernels.

    If the tool is missing, rejects the device or takes too long, a row says so.
    """
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if device != "cuda" or not Path(tool).is_file():
        rows.add("sanitizer", left_out="compute-sanitizer is not installed" if device == "cuda" else "no GPU")
        return True
    passed, until = True, time.perf_counter() + limit_s
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", "--launch-timeout", "0"]
        command += [sys.executable, "-m", "tests.ops.small_calls", "cuda"]
        code, out = finished(command, max(1.0, (until - time.perf_counter()) / (2 - (check == "racecheck"))))
        summary = next((line for line in out.splitlines() if "SUMMARY" in line), None)
        if summary is None:
            rows.add(check, left_out=f"no result: {out.strip()[-500:]}", rc=code)
        else:
            rows.add(check, summary=summary, rc=code)
            passed &= code == 0
    return passed


# The operator benchmarks that fit into the time of the command: the published image and a training batch;
# compiled torch only for the first one in bfloat16.
SELECTED = "(published-1 or training-ragged) and not (compiled and (float32 or training-ragged))"
COSTLY_FIRST = ("conv3x3", "cross_attention", "token_mlp")


def run_benchmarks(rows: Rows, device: str, limit_s: float) -> bool:
    """Run the operator benchmarks, with one row per case and contender.

    They run file by file, so that only the last ones are lost if time runs out.
    """
    started = time.perf_counter()
    complete, selected = True, SELECTED if device == "cuda" else "tiny and float32 and not compiled"
    names = [path.stem.removeprefix("test_") for path in sorted((ROOT / "benchmarks").glob("test_*.py"))]
    for whole in ("inference", "training"):  # `compare_inference`, `time_training`
        names.remove(whole)
    for name in sorted(names, key=lambda name: name not in COSTLY_FIRST):
        left_s = int(limit_s - (time.perf_counter() - started))
        if left_s < 5:
            rows.add(f"benchmark {name}", left_out=f"no time left of {limit_s} s")
            complete = False
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "benchmarks.json"
            command = [sys.executable, "-m", "pytest", "-q", f"benchmarks/test_{name}.py", "--benchmark-only"]
            code, out = finished([*command, "-k", selected, f"--benchmark-json={report}"], left_s)
            if code not in (0, 5):  # 5: pytest selected nothing in this file
                rows.add(f"benchmark {name}", error=out[-2000:], rc=code)
                complete = False
            if report.is_file():
                for bench in json.loads(report.read_text())["benchmarks"]:
                    rows.add(bench["name"], **bench["extra_info"])
    return complete


def predict(rows: Rows, device: str, limit_s: float, words: Sequence[str]) -> bool:
    """Run `python -m benchmarks` with these words, and add a row for each of its rows."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", "--device", device, "--out", folder, *words]
        code, out = finished(command, limit_s)
        if code:
            rows.add(f"inference {' '.join(words)}", error=out[-2000:], rc=code)
        written = Path(folder) / "bench.jsonl"
        for line in written.read_text().splitlines() if written.is_file() else ():
            row = json.loads(line)
            who = row.get("contender") or f"roofline {row['stage']} {row['operator']}"
            size = "x".join(map(str, (row["batch"], *row["size"])))
            rows.add(f"inference {size} {who} {row['precision']}", **row)
    return code == 0


def engine(rows: Rows, device: str, limit_s: float) -> bool:
    """Time the engine alone with batches of 1, 8 and 32, then its parts, each in its own process."""
    until = time.perf_counter() + limit_s
    words = TOY_WORDS if device == "cpu" else WORDS
    ours = ["--parts", "contenders", "--contenders", "dmtl", "--compile", "none"]
    calls = [[*words, "--batch", n, *ours] for n in (("1",) if device == "cpu" else ("1", "8", "32"))]
    calls.append([*words, "--batch", "1", "--parts", "roofline"])
    done = [predict(rows, device, max(1.0, until - time.perf_counter()), call) for call in calls]
    return all(done)


def train(rows: Rows, device: str, limit_s: float) -> bool:
    """Time our training step, then the published one, with one label per image and with random labels."""
    case = training_case(device)
    never_waits(rows, case.but(batch=5), device)
    for batch in (5,) if device == "cpu" else (6, 24):
        for labels in ("one", "random"):
            race(rows, case.but(batch=batch), labels, [("dmtl", "bf16" if device == "cuda" else "fp32")])
    race(rows, case.but(batch=5 if device == "cpu" else 6), "one", [("published", "fp32")])
    return True


def expert(rows: Rows, device: str, limit_s: float) -> bool:
    """Time the expert next to the engine, in prediction and then in training."""
    until = time.perf_counter() + limit_s
    if device == "cpu":
        calls = [TOY_WORDS]
    else:
        calls = [[*WORDS, "--batch", "1", "--compile", "default"],
                 [*WORDS, "--batch", "32", "--compile", "none"]]  # fmt: skip
    done = [
        predict(rows, device, max(1.0, until - time.perf_counter()), [*words, "--parts", "contenders"])
        for words in calls
    ]
    pair = [(name, "bf16" if device == "cuda" else "fp32") for name in ("dmtl", "expert")]
    race(rows, training_case(device).but(batch=6), "one", pair)
    return all(done)


def training_case(device: str) -> Case:
    if device == "cuda":
        return Case(size=(512, 512), device=device)
    small = {"width": 32, "backbone_width": 16, "blocks": 1, "decoder_blocks": 1}
    return Case(size=(64, 64), device=device, options=small)


def race(rows: Rows, case: Case, labels: str, wanted: list[tuple[str, str]]) -> None:
    """Time these steps, which take turns, and add a row for each."""
    toy = case.device == "cpu"
    run = TrainingRace(TrainingCase(case, labels), wanted, modes=() if toy else ("default",))
    for _ in range(2 if toy else 7):
        run.round()
    size = "x".join(map(str, (case.batch, *case.size)))
    for row in run.result():
        rows.add(f"training {labels} {size} {row['contender']} {row['precision']}", **row)


def never_waits(rows: Rows, case, device: str) -> None:
    """Record an error if our step has a hidden host synchronisation."""
    trainee, batch = training.ours(case, "bf16"), TrainingCase(case).batch()
    trainee.step(batch)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        trainee.step(batch)
    except RuntimeError as error:
        rows.add("training step, no host synchronisation", error=one_line(error))
    else:
        rows.add("training step, no host synchronisation", checked=device == "cuda")
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


PARTS: dict[str, tuple[Callable[[Rows, str, float], bool], int]] = {
    "small": (small_calls, 60),
    "tests": (run_tests, 120),
    "engine": (engine, 90),
    "operators": (run_benchmarks, 70),
    "training": (train, 70),
    "sanitizer": (run_sanitizer, 50),
    "expert": (expert, 130),
}
"""Name of a part -> (function, time limit in seconds), in the order of execution."""


def run_part(rows: Rows, part: str, device: str, limit_s: float) -> bool:
    """Run a part in a separate process; if it could not report its own failure, add a row for it."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--child", part, "--device", device]
    command += ["--out", str(rows.path), "--seconds", str(limit_s)]
    started = time.perf_counter()
    code, out = finished(command, limit_s + 15)  # the part's own limit applies first
    print(out, end="", flush=True)
    if code not in (0, 1):
        rows.add(part, error=out[-2000:] or "no output", rc=code)
    rows.add(f"part {part}", passed=code == 0, seconds=round(time.perf_counter() - started, 1))
    return code == 0


def child(rows: Rows, part: str, device: str, limit_s: float) -> int:
    # TF32 is only used if it is requested by name; everything else must meet the tolerances of float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        return 0 if PARTS[part][0](rows, device, limit_s) else 1
    except Exception as error:  # any error: the next part has to run
        rows.add(part, error=f"{type(error).__name__}: {error}"[-2000:])
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")) / "gpu.jsonl"
    parser.add_argument("--out", type=Path, default=default, help="file to append rows to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS), help="parts to run")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help="of each part; default: what fits in ten minutes")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check needs a CUDA device, but torch finds none here", file=sys.stderr)
        return 2
    rows = Rows(args.out, args.device)
    if args.child:
        return child(rows, args.child, args.device, args.seconds)
    begin = args.out.stat().st_size if args.out.is_file() else 0
    passed = [
        run_part(rows, part, args.device, args.seconds or limit_s)
        for part, (_, limit_s) in PARTS.items()
        if part in args.only
    ]
    rows.print_table(begin)
    print(f"rows in {args.out}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
