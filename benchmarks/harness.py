"""Shared parts of the operator benchmarks: named sizes, contenders, the check before any timing, the clock,
and the machine's measured ceilings.

A benchmark file names its op's spec, creates the arguments of a call, defines the baseline in plain torch
(the published composition), and counts the work:

    @pytest.mark.parametrize("contender", contenders(SPEC))
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("size", SIZES)
    def test_my_op(bench, size, dtype, contender):
        call = arguments(SIZES[size], DTYPES[dtype])
        bench(SPEC, contender, call, eager, work=Work(flops=..., bytes=...))
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from dmtl import ops
from dmtl.nn import precision
from dmtl.ops.registry import BACKENDS, OpSpec, reasons_against
from dmtl.runtime.capture import capture
from dmtl.runtime.measure import seconds

from . import clock

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
ROUNDS = 9
CHANNELS_LAST = "eager-channels-last"  # the baseline on maps in that order
MOST_SECONDS = 4.0  # limit for the timed calls of one row on a CPU


@dataclass(frozen=True)
class Size:
    """counts: rows of each task. The denoiser's maps are [sum(counts), channels, height, width]."""

    counts: tuple[int, ...]
    channels: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @property
    def images(self) -> int:
        return max(self.counts)

    @property
    def tokens(self) -> int:
        return (self.height // 4) * (self.width // 4)


SIZES = {
    "tiny": Size((1, 1), 32, 16, 16),
    "published-1": Size((1,) * 5, 512, 64, 64),  # one image of 512x512, five tasks
    "published-8": Size((8,) * 5, 512, 64, 64),
    "training-ragged": Size((9, 0, 7, 3, 5), 512, 32, 32),  # one-label pairs of 256x256 crops
}


@dataclass(frozen=True)
class Work:
    """The floor of a call: operations (two per multiply-add) and bytes that must be read and written once."""

    flops: float = 0.0
    bytes: float = 0.0


def contenders(spec: OpSpec, *others: str) -> list:
    """Return pytest parameters: every fast backend that runs here, eager and compiled torch, and others."""
    probe = [torch.empty(0, device=DEVICE)]
    ours = [
        name
        for name in BACKENDS
        if name != "reference" and not reasons_against(spec, name, probe) and not _interpreted(name)
    ]
    return [pytest.param(name, id=f"dmtl-{name}") for name in ours] + ["eager", "compiled", *others]


def layout(contender: str) -> torch.memory_format:
    """Return the order of a contender's maps: NCHW as published for the baselines, unless they are named for
    another."""
    return torch.contiguous_format if contender in ("eager", "compiled") else torch.channels_last


def _interpreted(backend: str) -> bool:
    """Whether this is Triton's interpreter, which computes on the CPU; its times are meaningless."""
    return backend == "triton" and DEVICE == "cpu"


@functools.cache
def verified(spec: OpSpec, backend: str, dtype: torch.dtype) -> bool:
    """Check the backend against the reference on the op's samples, by the rule of the tests
    (tests/ops/tools.py): wrong results are not timed."""
    from tests.ops.tools import errors, run, serves

    served = 0
    for size in ("tiny", "odd"):
        for sample in spec.samples(size, dtype, DEVICE):
            if serves(spec, backend, dtype, sample):
                continue
            truth = run(spec, sample, torch.float64, "reference")
            allowed = errors(run(spec, sample, dtype, "reference"), truth)
            for name, error in errors(run(spec, sample, dtype, backend), truth).items():
                assert error <= 2 * allowed[name] + spec.tolerance[dtype], f"{spec.name} on {backend}: {name}"
            served += 1
    assert served, f"{spec.name} on {backend}: nothing to verify in {dtype}"
    return True


def prepared(
    spec: OpSpec, contender: str, call: dict, eager: Callable[..., object], dtype: torch.dtype
) -> Callable[[], object]:
    """Return the callable to time. `eager` takes the same arguments as the op's function."""
    if contender in ("eager", CHANNELS_LAST):
        return functools.partial(eager, **call)
    if contender == "compiled":
        torch.compiler.reset()
        return functools.partial(torch.compile(eager), **call)
    from tests.ops.tools import serves

    if reason := serves(spec, contender, dtype):
        pytest.skip(f"{contender}: {reason}")
    assert verified(spec, contender, dtype)

    def run() -> object:
        with ops.use_backend(**{spec.name: contender}):
            return spec.function(**call)

    return run


def with_gradients(forward: Callable[[], object], call: dict) -> Callable[[], object]:
    """Return the forward call followed by the gradients of arguments that require one."""
    from tests.ops.tools import outputs

    leaves = [x for x in call.values() if isinstance(x, torch.Tensor) and x.requires_grad]

    def results() -> list[torch.Tensor]:
        return [out for out in outputs(forward()) if out.requires_grad]  # statistics have no gradient

    incoming = [torch.randn_like(out) for out in results()]
    return lambda: torch.autograd.grad(results(), leaves, incoming)


def times_s(call: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of single calls after a warm-up. On a GPU, replays of a CUDA graph between events, with the L2
    cache flushed before each, so that the host's time for a launch does not count."""
    if DEVICE == "cpu":
        call()
        device = torch.device(DEVICE)
        times = [seconds(call, device) for _ in range(3)]
        while len(times) < rounds and sum(times) < MOST_SECONDS:
            times.append(seconds(call, device))
        return times
    replay, _ = capture(call, torch.device(DEVICE), warm_up=3)
    flush = _flusher()
    pairs = []
    for _ in range(3 * rounds):
        flush()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return [1e-3 * begin.elapsed_time(end) for begin, end in pairs]


def _flusher() -> Callable[[], object]:
    """Return what writes more than the L2 cache holds."""
    return torch.empty(256 << 20, dtype=torch.int8, device=DEVICE).zero_


def copy_rate() -> float:
    """Return the bytes per second that a large copy reads and writes on this machine."""
    return clock.copy_rate(torch.device(DEVICE))


def compute_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of the library's best dense product here."""
    name = next(name for name, kind in precision.DTYPES.items() if kind == dtype)
    return clock.compute_rate(name, torch.device(DEVICE))


def figures(taken_s: float, work: Work, dtype: torch.dtype) -> dict[str, float]:
    """Return rates, and the fraction of the limiting ceiling: the floor's time over the measured one."""
    found = {}
    floors = []
    if work.bytes:
        found["gb_per_s"] = work.bytes / taken_s / 1e9
        floors.append(work.bytes / copy_rate())
    if work.flops:
        found["gflop_per_s"] = work.flops / taken_s / 1e9
        floors.append(work.flops / compute_rate(dtype))
    if floors:
        found["floor_us"] = 1e6 * max(floors)
        found["fraction_of_ceiling"] = max(floors) / taken_s
    return found


def quantiles_us(times: list[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile."""
    cuts = statistics.quantiles(times, n=5, method="inclusive")
    return {
        "median_us": 1e6 * statistics.median(times),
        "p20_us": 1e6 * cuts[0],
        "p80_us": 1e6 * cuts[-1],
    }
