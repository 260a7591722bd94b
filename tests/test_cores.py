"""Kernels use fewer threads while other processes want the cores."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from dmtl.runtime import cores
from dmtl.runtime.cores import HOLD, Cores


class Machine:
    """A machine of two cores: `others` endless loops next to this process, which always computes."""

    def __init__(self):
        self.now = self.waited = self.used = 0.0
        self.others = 0
        self.counts = True
        self.cores = Cores(lambda: self.waited if self.counts else None, lambda: self.used, lambda: self.now)

    def compute(self, seconds: float) -> list[int]:
        """Return the threads in steps of 0.1 s."""
        found = []
        for _ in range(round(seconds / 0.1)):
            found.append(self.cores.threads())
            share = min(1.0, 2 / (found[-1] + self.others))  # of a core, for each thread
            self.used += 0.1 * share * found[-1]
            self.waited += 0.1 * (1 - share) * found[-1]
            self.now += 0.1 + 1e-9
            self.cores.adapt()
        return found


@pytest.fixture
def machine():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Machine()
    torch.set_num_threads(before)


def test_quiet_machine(machine):
    assert set(machine.compute(10)) == {2}


@pytest.mark.parametrize("others", [1, 2, 5])
def test_busy_machine(machine, others):
    machine.compute(1)
    machine.others = others
    found = machine.compute(120)
    assert found[:3] == [2, 1, 1]
    assert found.count(2) <= 8  # tries, each twice as long after the one before
    machine.others = 0
    assert machine.compute(2 * HOLD[1])[-1] == 2
    machine.others = others
    assert machine.compute(5).count(2) <= 5  # back at the first interval


def test_many_threads_lose_only_the_surplus(machine):
    torch.set_num_threads(16)
    wait = Cores(lambda: machine.waited, lambda: machine.used, lambda: machine.now)
    machine.waited, machine.used, machine.now = 1.0, 15.0, 1.0  # one loop on 16 cores
    wait.adapt()
    assert wait.threads() == 15


def test_nothing_is_changed_without_a_measurement(machine):
    machine.others = 5
    wait = machine.cores
    machine.waited = machine.used = 1.0  # within the interval
    wait.adapt()
    assert wait.threads() == 2
    machine.counts = False  # a system that does not count
    assert set(machine.compute(3)) == {2}


def test_one_thread_is_the_least(machine):
    torch.set_num_threads(1)
    machine.others = 5
    assert set(machine.compute(3)) == {1}


@pytest.mark.skipif(cores.waited_s() is None, reason="this system does not count waiting times")
def test_the_system_counts_waiting():
    """Two loops on one core wait for half of the time."""
    program = """
import os, threading, time
from dmtl.runtime.cores import waited_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if os.fork() == 0:
    end = time.monotonic() + 1.0
    while time.monotonic() < end: pass
    os._exit(0)
before, end = waited_s(), time.monotonic() + 0.6
while time.monotonic() < end: pass
print(waited_s() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert 0.1 < float(done.stdout) < 0.7


@pytest.mark.skipif(cores._torch_library() is None, reason="torch was built without OpenMP")
def test_torchs_operators_get_one_thread(machine):
    wait = machine.cores
    with wait.for_kernels():
        assert torch.get_num_threads() == 1 and wait.threads() == 2
        with wait.for_kernels():
            assert torch.get_num_threads() == 1 and wait.threads() == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), wait.for_kernels():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_other_threads_keep_their_number(machine):
    """Those that are inside, too, and those that start meanwhile."""
    wait, found = machine.cores, {}

    def starts() -> None:
        found["outside"] = torch.get_num_threads()
        torch.set_num_threads(3)
        with wait.for_kernels():
            found["inside"] = wait.threads()
        found["after"] = torch.get_num_threads()

    with wait.for_kernels():
        thread = threading.Thread(target=starts)
        thread.start()
        thread.join()
        assert wait.threads() == 2
    assert torch.get_num_threads() == 2
    assert found == {"outside": 2, "inside": 3, "after": 3}
