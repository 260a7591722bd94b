"""The memory that is available, and the pool that large outputs of CPU kernels come from."""

import subprocess
import sys

import pytest
import torch

from dmtl.engine.engine import Engine
from dmtl.runtime import memory
from dmtl.runtime.memory import Pool, available_bytes, empty, empty_like
from tests.models.cases import small_model

SHAPE = (1, 64, 64, 128)  # two megabytes of float32


def test_a_block_is_used_again_when_its_last_tensor_is_gone():
    pool = Pool()
    with pool.in_use():
        first = empty(SHAPE, torch.float32)
        view, place = first[:, :3], first.data_ptr()
        del first
        second = empty(SHAPE, torch.float32)
        assert second.data_ptr() != place and pool.blocks == 2
        del view
        third = empty(SHAPE, torch.float32, torch.channels_last)
        assert third.data_ptr() == place and pool.blocks == 2
        assert third.is_contiguous(memory_format=torch.channels_last) and third.shape == SHAPE
        third.fill_(1.0)
        assert torch.equal(empty_like(third).copy_(third), third)
    assert empty(SHAPE, torch.float32).data_ptr() != place


def test_release_forgets_free_blocks_only():
    pool = Pool()
    with pool.in_use():
        kept = empty(SHAPE, torch.float32).fill_(3.0)
        empty(SHAPE, torch.float32)
        pool.release()
        assert bool((kept == 3.0).all())
        again = [empty(SHAPE, torch.float32) for _ in range(2)]
        assert pool.blocks == 4 and kept.data_ptr() not in [x.data_ptr() for x in again]
    del kept, again  # what comes back late is not kept for ever
    assert sum(map(len, pool._free.values())) <= 2


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (0, 64, 64, 128)])
def test_small_tensors_are_torchs(shape):
    pool = Pool()
    with pool.in_use():
        assert empty(shape, torch.float32, torch.channels_last).shape == shape and pool.blocks == 0


def test_an_engine_takes_no_block_after_its_first_call():
    engine = Engine(small_model(width=256))
    image = torch.randn(1, 3, 320, 320)
    results = [engine.maps(image).maps for _ in range(2)]
    taken = engine._pool.blocks
    assert taken > 0
    results += [engine.maps(image).maps for _ in range(3)]
    assert engine._pool.blocks == taken
    for task in results[0]:
        assert all(torch.equal(maps[task], results[0][task]) for maps in results)
    kinds = [torch.randn(1, 3, 256 + 32 * i, 320) for i in range(4)] + [torch.randn(1, 3, 416, 416)] * 3
    for other in kinds:
        engine.maps(other)
    assert sum(map(len, engine._pool._free.values())) <= taken  # blocks of other sizes were given back


def test_available_memory():
    assert available_bytes(torch.device("cpu")) > 1 << 20


@pytest.mark.parametrize(("limit", "expected"), [("1000\n", 600), ("max\n", None)])
def test_inactive_file_cache_counts_as_free(tmp_path, monkeypatch, limit, expected):
    """A container that read large files is not out of memory."""
    stat = "anon 300\nfile 600\ninactive_file 500\nactive_file 100\n"
    for name, text in {"max": limit, "current": "900\n", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_meminfo", lambda: None)
    assert available_bytes(torch.device("cpu")) == expected


def test_freed_blocks_are_kept_for_the_next_allocation():
    """In a process of its own, because the C library's setting holds for the whole process."""
    code = """
import resource
import torch
from dmtl.runtime.memory import keep_freed

keep_freed()
faults = []
for size in (64, 60, 56):  # MiB, more than the library ever keeps by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size << 18)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *later = map(int, done.stdout.split())
    assert first > 1000 and max(later) < 100
