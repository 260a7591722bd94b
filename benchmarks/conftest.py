"""Settings of the benchmarks, `pytest benchmarks --benchmark-only`.

DMTL_BENCH_THREADS sets the number of threads; the default is torch's.
"""

import os

import pytest
import torch

from . import harness

NO_WORK = harness.Work()
torch.set_num_threads(int(os.environ.get("DMTL_BENCH_THREADS", torch.get_num_threads())))


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    """Add facts about the machine to a stored row, to compare it later (pytest-benchmark adds the commit)."""
    from dmtl.info import info

    facts = info()
    machine_info["dmtl"] = {key: facts[key] for key in ("dmtl", "packages", "threads", "gpus", "native")}


@pytest.fixture
def bench(benchmark, request):
    """Time one contender of an operator on one call; see `harness`.

    Rates, the floor and the fraction of it that was reached are written to the row's extra_info.
    """

    def run(spec, contender, call, eager, work=NO_WORK, backward=False):
        parameters = request.node.callspec.params
        dtype = harness.DTYPES[parameters["dtype"]]
        benchmark.group = f"{request.node.originalname} {parameters['size']} {parameters['dtype']}"
        timed = harness.prepared(spec, contender, call, eager, dtype)
        if backward:
            timed = harness.with_gradients(timed, call)
        with torch.inference_mode(not backward):
            if benchmark.disabled:
                timed()
                return
            seconds = harness.times_s(timed)
            # pytest-benchmark's own table times whole calls, the device's work included.
            benchmark.pedantic(lambda: _finished(timed), rounds=len(seconds), warmup_rounds=0)
        benchmark.extra_info.update(
            op=spec.name,
            size=parameters["size"],
            dtype=parameters["dtype"],
            contender=contender,
            threads=torch.get_num_threads(),
            **harness.quantiles_us(seconds),
            **harness.figures(sorted(seconds)[len(seconds) // 2], work, dtype),
        )

    return run


def _finished(call):
    call()
    if harness.DEVICE == "cuda":
        torch.cuda.synchronize()
