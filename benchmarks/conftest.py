"""Settings of the benchmarks: `pytest benchmarks --benchmark-only`. Threads by DMTL_BENCH_THREADS (default:
torch's choice)."""

import os

import pytest
import torch

torch.set_num_threads(int(os.environ.get("DMTL_BENCH_THREADS", torch.get_num_threads())))


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    """What a stored row needs to be compared later (pytest-benchmark adds the commit)."""
    from dmtl.info import info

    facts = info()
    machine_info["dmtl"] = {key: facts[key] for key in ("dmtl", "packages", "threads", "gpus", "native")}


@pytest.fixture
def time_op(benchmark):
    """Times a callable after a warm-up, waiting for the device, and notes the rate in elements per second."""

    def run(call, elements: int) -> None:
        cuda = torch.cuda.is_available()

        def timed():
            call()
            if cuda:
                torch.cuda.synchronize()

        benchmark.pedantic(timed, rounds=7, warmup_rounds=1)
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.extra_info["elements_per_s_median"] = elements / benchmark.stats["median"]
        benchmark.extra_info["threads"] = torch.get_num_threads()

    return run
