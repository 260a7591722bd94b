"""Choice by measurement: the fastest way is found once for each
kind of call, and only where that is allowed."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import dmtl
from dmtl.nn.precision import tf32
from dmtl.ops import registry
from dmtl.runtime import measure
from dmtl.runtime.measure import Fastest
from tests.fakecuda import FakeCuda

from .tools import missing

CPU = torch.device("cpu")


class Stopwatch:
    """A timer that calls nothing slower than a dictionary: every call says itself how long it takes."""

    def __init__(self) -> None:
        self.timed = 0

    def __call__(self, call, device) -> float:
        self.timed += 1
        return call()


def test_fastest_is_measured_once():
    watch = Stopwatch()
    fastest = Fastest(watch)
    assert fastest.choose("a", {"slow": lambda: 2.0, "fast": lambda: 1.0}, CPU) == "fast"
    assert fastest.choose("a", {"slow": lambda: 0.0, "fast": lambda: 9.0}, CPU) == "fast"  # remembered
    assert watch.timed == 2
    assert fastest.choose("b", {"slow": lambda: 0.5, "fast": lambda: 1.0}, CPU) == "slow"
    assert fastest.choose("c", {"alone": lambda: 1.0}, CPU) == "alone"
    assert watch.timed == 4


def test_nothing_is_measured_in_a_graph_or_when_deterministic(monkeypatch):
    watch = Stopwatch()
    fastest = Fastest(watch)
    ways = {"first": lambda: 2.0, "second": lambda: 1.0}
    torch.use_deterministic_algorithms(True)
    try:
        assert fastest.choose("a", ways, CPU) == "first"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda = torch.device("cuda", 0)
    assert fastest.choose("a", ways, cuda) == "first"
    assert watch.timed == 0 and not fastest.winners
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert fastest.choose("a", ways, cuda) == "second"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert fastest.choose("a", ways, cuda) == "second"  # what is known holds in a graph, too


def test_choices_of_a_gpu_are_remembered_on_disk(monkeypatch, tmp_path):
    """By the next process on this machine; not by another machine, name or kind; not from a broken file."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(measure, "_machine", lambda device: "a GPU")
    monkeypatch.setenv("DMTL_CACHE", str(tmp_path / "cache"))
    ways = {"slow": lambda: 2.0, "fast": lambda: 1.0}

    def measured(kind=("a", torch.float32), name="ops", device=cuda, ways=ways) -> int:
        watch = Stopwatch()
        assert Fastest(watch, name).choose(kind, ways, device) == "fast"
        return watch.timed

    assert [measured(), measured()] == [2, 0]
    assert measured(kind=("b", torch.float32)) == measured(name="others") == 2
    assert measured(device=CPU) == measured(name=None) == 2
    assert measured(ways={"other": lambda: 3.0, "fast": lambda: 1.0, "third": lambda: 2.0}) == 0
    gone = {"fast": lambda: 5.0, "faster": lambda: 1.0}
    del gone["fast"]
    assert (
        Fastest(Stopwatch(), "ops").choose(("a", torch.float32), gone | {"x": lambda: 7.0}, cuda) == "faster"
    )
    monkeypatch.setattr(measure, "_machine", lambda device: "another GPU")
    assert measured() == 2
    (tmp_path / "cache" / "choices.json").write_text("[1, {")
    assert [measured(), measured()] == [2, 0]
    monkeypatch.setenv("DMTL_CACHE", "")
    assert [measured(), measured()] == [2, 2]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMTL_CACHE", str(tmp_path / "file"))
    assert [measured(), measured()] == [2, 2]


def test_seconds_on_a_cpu():
    calls = []
    assert measure.seconds(lambda: calls.append(1), CPU) >= 0
    assert len(calls) == 1
    assert measure.warm_seconds(lambda: calls.append(1), CPU) >= 0
    assert len(calls) == 1 + 1 + measure.ROUNDS  # one to warm up


@pytest.mark.skipif(bool(missing("triton", "conv3x3")), reason=missing("triton", "conv3x3"))
@pytest.mark.parametrize("faster", ["triton", "reference"])
def test_conv3x3_takes_the_faster_backend(monkeypatch, faster):
    """As on a GPU, with Triton's interpreter in the kernel's place: library and kernel are timed for forward
    and backward, once for each kind; an override is obeyed and measures nothing."""
    seen = []

    def timer(call, device) -> float:
        seen.append(call)
        return 0.0 if ("reference" in call.func.__name__) == (faster == "reference") else 1.0

    monkeypatch.setattr(registry, "MEASURED", ("cpu",))
    monkeypatch.setattr(registry, "AUTOMATIC", {"cpu": ("triton", "reference")})
    monkeypatch.setattr(registry, "_fastest", Fastest(timer))
    monkeypatch.delenv("DMTL_BACKEND", raising=False)
    x, weight = torch.randn(3, 8, 4, 5, requires_grad=True), torch.randn(8, 8, 3, 3)
    for counts in ([3, 0], [0, 3], [3, 0]):  # one kind
        dmtl.ops.conv3x3(x, [weight] * 2, None, counts).sum().backward()
    assert len(seen) == 4 and set(registry._fastest.winners.values()) == {faster}
    dmtl.ops.conv3x3(x.detach(), [weight] * 2, None, [1, 2])  # two tasks: another kind
    assert len(seen) == 6
    with dmtl.use_backend("reference"):
        dmtl.ops.conv3x3(torch.randn(1, 8, 9, 9), [weight], None, [1])
    monkeypatch.setenv("DMTL_BACKEND", "reference")
    dmtl.ops.conv3x3(torch.randn(1, 8, 9, 9), [weight], None, [1])
    assert len(seen) == 6


@pytest.mark.skipif(bool(missing("triton", "conv3x3")), reason=missing("triton", "conv3x3"))
def test_conv3x3_configurations(monkeypatch):
    """The Triton kernel's own configurations are compared in the same way."""
    from dmtl.kernels.triton import conv3x3 as module

    sizes = (16, 32)
    configs = [dict(BLOCK_M=m, BLOCK_N=16, BLOCK_K=16, BLOCK_W=0, num_warps=4, num_stages=2) for m in sizes]

    def larger_is_faster(call, device) -> float:
        call()
        return -call.args[-1]["BLOCK_M"]

    fastest = Fastest(larger_is_faster)
    monkeypatch.setattr(module, "_MEASURE", True)
    monkeypatch.setattr(module, "CONFIGS", {torch.float32: configs})
    monkeypatch.setattr(module, "_fastest", fastest)
    x, weight = torch.randn(1, 8, 4, 5), torch.randn(8, 8, 3, 3)
    with dmtl.use_backend(conv3x3="triton"):
        out = dmtl.ops.conv3x3(x, [weight], None, [1])
    torch.testing.assert_close(out, torch.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)
    assert list(fastest.winners.values()) == [str(configs[1])]


@pytest.mark.skipif(bool(missing("triton", "conv3x3")), reason=missing("triton", "conv3x3"))
def test_conv3x3_large_tiles_need_shared_memory(monkeypatch):
    from dmtl.kernels.triton import conv3x3 as module

    def large(kib: int, dtype: torch.dtype) -> int:
        utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": kib * 1024})
        monkeypatch.setattr(module, "driver", SimpleNamespace(active=SimpleNamespace(utils=utils)))
        return sum(config in module.LARGE for config in module._configs(torch.empty(0, dtype=dtype)))

    assert large(227, torch.bfloat16) == large(227, torch.float16) == len(module.LARGE)
    assert large(227, torch.float32) == large(163, torch.bfloat16) == large(99, torch.float16) == 0


def test_replays_are_timed_on_a_gpu(monkeypatch):
    """What runs faster in a graph wins, whatever the host needs to launch it."""
    fake = FakeCuda(monkeypatch)

    def way(host_s: float, *kernels_s: float):
        def call() -> None:
            fake.host(host_s)
            for seconds in kernels_s:
                fake.kernel(seconds)

        return call

    def choose(**ways) -> str:
        return Fastest().choose("a", ways, torch.device("cuda", 0))

    assert choose(library=way(1e-5, *[1e-5] * 3), triton=way(3e-4, 1.2e-5)) == "triton"
    assert choose(library=way(1e-4, 2e-5), triton=way(1e-6, 3e-5)) == "library"
    assert choose(one=way(0.0, 1e-4), two=way(0.0, *[4e-5] * 3)) == "one"
    taken = measure.warm_seconds(way(1e-3, 2e-5), torch.device("cuda", 0))
    assert taken == pytest.approx(2e-5, rel=0.1)


def test_tf32_is_another_kind(monkeypatch):
    """What float32 chose does not hold for TF32, and the other way round; 16 bits do not care."""
    asked: list = []
    monkeypatch.setattr(registry, "MEASURED", ("cpu",))
    monkeypatch.setattr(registry._fastest, "choose", lambda kind, *_: asked.append(kind) or "reference")
    monkeypatch.delenv("DMTL_BACKEND", raising=False)

    def kinds(dtype: torch.dtype) -> list:
        """One for each setting of the two flags."""
        asked.clear()
        x, weight = torch.ones(1, 8, 3, 3, dtype=dtype), torch.ones(8, 8, 3, 3, dtype=dtype)
        for products, convolutions in itertools.product([False, True], repeat=2):
            torch.backends.cuda.matmul.allow_tf32 = products
            torch.backends.cudnn.allow_tf32 = convolutions
            dmtl.ops.conv3x3(x, [weight], None, [1])
        return list(asked)

    with tf32(False):  # puts the flags back
        assert len(set(kinds(torch.float32))) == 4
        assert kinds(torch.float32) == kinds(torch.float32)
        assert len(set(kinds(torch.bfloat16))) == len(set(kinds(torch.float16))) == 1
