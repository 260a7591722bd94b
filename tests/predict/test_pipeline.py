"""Reading, computing and writing at the same time: order, bounds, exceptions, and what is waited for."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from dmtl.predict.pipeline import Waits, WriteBehind, batched, read_ahead


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def calls(pool, functions):
    yield from ((pool, function) for function in functions)


def test_results_come_in_order_whoever_is_done_first(pool):
    def read(i):
        time.sleep(0.02 * (i % 3 == 0))
        return i

    assert list(read_ahead(calls(pool, [partial(read, i) for i in range(20)]), 4, Waits())) == list(range(20))


def test_reading_is_at_most_depth_ahead(pool):
    asked = []

    def read(i):
        asked.append(i)
        return i

    with closing(read_ahead(calls(pool, [partial(read, i) for i in range(100)]), 3, Waits())) as results:
        for result in results:
            assert len(asked) <= result + 3
            if result == 50:
                break
    assert len(asked) < 60


def test_calls_may_end_by_what_earlier_ones_found(pool):
    end = threading.Event()

    def endless():
        while not end.is_set():
            yield pool, found
        ended.append(True)

    def found():
        numbers.append(len(numbers))
        if len(numbers) >= 5:  # two at once may both see 6
            end.set()

    numbers, ended = [], []
    assert 5 <= len(list(read_ahead(endless(), 2, Waits()))) <= 7 and ended == [True]


def test_an_exception_of_a_reader_is_raised_in_its_turn(pool):
    def fails():
        raise RuntimeError("broken")

    results = read_ahead(calls(pool, [lambda: 1, fails, lambda: 2]), 3, Waits())
    assert next(results) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(results)


def test_batches_of_neighbours_with_equal_keys():
    key = {"a": 1, "b": 1, "c": 1, "d": 2, "x": None, "y": None}.get
    found = ["".join(batch) for batch in batched("abcadxyabxb", key, lambda key: 3 if key == 1 else 1)]
    assert found == ["abc", "a", "d", "x", "y", "ab", "x", "b"]


def done(result):
    future = Future()
    future.set_result(result)
    return future


def test_writing_is_collected_in_order_and_bounded(pool):
    collected, under_way, most = [], set(), []

    def write(i):
        under_way.add(i)
        most.append(len(under_way))
        time.sleep(0.01 * (i % 3))
        under_way.discard(i)
        return i

    behind = WriteBehind(collected.append, 3, 10, Waits())
    for i in range(20):
        behind.room(4)
        behind.add(pool.submit(write, i), 4)
        assert i + 1 - len(collected) <= 2  # 3 x 4 would be more than 10
    behind.room(99)  # alone, a job may be heavier
    behind.add(done(20), 99)
    behind.drain()
    assert collected == list(range(21)) and max(most) <= 2


def test_an_exception_of_a_writer_is_raised_once_the_rest_is_collected(pool):
    def fails():
        raise OSError("disk full")

    collected = []
    behind = WriteBehind(collected.append, 9, 9, Waits())
    for job in (lambda: 1, fails, lambda: 2, fails, lambda: 3):
        behind.add(pool.submit(job))
    with pytest.raises(OSError, match="disk full"):
        behind.drain()
    assert collected == [1, 2, 3]


def test_reading_computing_and_writing_happen_at_the_same_time():
    """Image n is computed while n + 1 is read and n - 1 written: none goes on without the other two."""
    meeting, last = threading.Barrier(3, timeout=300), 15

    def stage(image, first, until):
        if first <= image <= until:
            meeting.wait()
        return image

    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(1) as writers:
        written = []
        behind = WriteBehind(written.append, 3, 1, Waits())
        for image in read_ahead(calls(readers, [partial(stage, i, 2, last) for i in range(16)]), 3, Waits()):
            stage(image, 1, last - 1)
            behind.room(0)
            behind.add(writers.submit(stage, image, 0, last - 2))
        behind.drain()
    assert written == list(range(16))


@pytest.mark.parametrize("slow", ["reading", "computing", "writing"])
def test_the_slowest_stage_is_what_is_waited_for(slow):
    """The more it takes, the less the machine's other work matters."""
    for pause in (0.02, 0.2, 2.0):
        took, waits = staged(
            6, **{stage: pause * (stage == slow) for stage in ("reading", "computing", "writing")}
        )
        shares = {"reading": waits.reading, "writing": waits.writing}
        shares["computing"] = took - sum(shares.values())
        if shares[slow] > 0.6 * took:
            return
    raise AssertionError(f"{shares} of {took} s, with 6 pauses of {pause} s in {slow}")


def staged(count, reading, computing, writing):
    waits, start = Waits(), time.perf_counter()
    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(1) as writers:
        behind = WriteBehind(lambda result: None, 3, 1, waits)
        for _ in read_ahead(calls(readers, [partial(time.sleep, reading)] * count), 3, waits):
            time.sleep(computing)
            behind.room(0)
            behind.add(writers.submit(time.sleep, writing))
        behind.drain()
    return time.perf_counter() - start, waits
