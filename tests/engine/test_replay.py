"""Recordings of a CPU's calls: every replay is what the eager computation gives, bit for bit."""

from __future__ import annotations

import threading

import pytest
import torch

from dmtl import ops
from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.engine.graphs import Graphs
from dmtl.engine.replay import cpu_capture
from dmtl.runtime import native
from tests.engine.test_engine import MODELS, ids
from tests.models.cases import small_model

ENCODERS = [dict(backbone="efficientnet_lite0"), dict(backbone="resnet18", backbone_width=8)]
needs_core = pytest.mark.skipif(bool(native.why_no_core()), reason="dmtl._core was not built")


def pair_of_engines(options: dict) -> tuple[Engine, Engine]:
    """An engine, and one of the same model that records nothing."""
    model = small_model(**options)
    recorded, eager = Engine(model), Engine(model)
    eager._graphs = None
    return recorded, eager


def assert_same_bits(got, expected) -> None:
    assert got.steps == expected.steps and got.finite.keys() == expected.finite.keys()
    for task, map_ in expected.maps.items():
        assert torch.equal(got.maps[task], map_), task
        assert got.finite[task] == expected.finite[task]


@needs_core
@pytest.mark.parametrize("options", [*MODELS, *ENCODERS], ids=ids)
def test_same_bits(options):
    """New images, seeds and samples; two sizes, one of them with padding."""
    recorded, eager = pair_of_engines(options)
    for seed in range(4):
        noise = CounterNoise(seed - 1, torch.tensor([seed, 4]))
        for size in ((64, 96), (40, 50)):
            image = torch.randn(2, 3, *size)
            assert_same_bits(recorded.maps(image, noise=noise), eager.maps(image, noise=noise))
    assert len(recorded._graphs) == 2
    for _ in range(3):
        image = torch.randn(1, 3, 64, 64)
        mine, other = recorded(image), eager(image)
        for name in mine.final:
            assert torch.equal(mine.final[name], other.final[name])
            assert torch.equal(mine.initial[name], other.initial[name])
    assert len(recorded._graphs) == 3


@needs_core
def test_not_finite():
    """A recording reports an image that gives no finite maps, and forgets it."""
    recorded, eager = pair_of_engines({})
    bad = torch.full((1, 3, 64, 64), torch.nan)
    for image in (torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64), bad, torch.randn(1, 3, 64, 64)):
        got, expected = recorded.maps(image), eager.maps(image)
        assert {t: bool(f) for t, f in got.finite.items()} == {t: bool(f) for t, f in expected.finite.items()}
    assert_same_bits(got, expected)


@needs_core
def test_what_a_recording_depends_on(monkeypatch):
    """Threads, instruction set and backends: a change is computed with the new choice."""
    recorded, eager = pair_of_engines({})
    image, core = torch.randn(1, 3, 64, 64), native.core()
    threads, isa = torch.get_num_threads(), core.isa()

    def check() -> None:
        for _ in range(3):
            assert_same_bits(recorded.maps(image), eager.maps(image))

    check()
    try:
        torch.set_num_threads(2)
        check()
        for name in core.isas():
            core.use_isa(name)
            check()
    finally:
        torch.set_num_threads(threads)
        core.use_isa(isa)
    with ops.use_backend("reference"):
        check()
    monkeypatch.setenv("DMTL_BACKEND_TOKEN_MLP", "reference")
    check()


@needs_core
@pytest.mark.parametrize("diffusion", ["none", "feature", "prediction"])
def test_maps_do_not_depend_on_the_number_of_threads(diffusion):
    options = dict(backbone="efficientnet_lite0", diffusion=diffusion)
    image, threads, found = torch.randn(2, 3, 64, 96), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            engine = pair_of_engines(options)[0]
            for _ in range(3):  # computed, recorded, replayed
                found.append(engine.maps(image))
                assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for out in found[1:]:
        assert_same_bits(out, found[0])


@needs_core
def test_threads():
    """Calls from several threads at a time: one replays, the others compute eagerly."""
    recorded, eager = pair_of_engines({})
    images = [torch.randn(1, 3, 64, 64) for _ in range(4)]
    expected = [eager.maps(image) for image in images]
    for image in images[:2]:
        recorded.maps(image)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                assert_same_bits(recorded.maps(images[number]), expected[number])
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@needs_core
def test_memory_is_flat_in_steps():
    """Blocks that a step frees serve the next one."""
    held = {}
    for steps in (2, 12):
        recorded, _ = pair_of_engines({})
        for _ in range(3):
            recorded.maps(torch.randn(1, 3, 64, 64), steps=steps)
        assert len(recorded._graphs) == 1
        held[steps] = recorded._graphs.held
    assert held[12] < 1.1 * held[2]


@pytest.mark.parametrize(("side", "samples"), [(640, 1), (64, 2)])
def test_large_images_and_several_samples_are_not_recorded(side, samples):
    engine = Engine(small_model(), samples=samples)
    for _ in range(3):
        engine.maps(torch.randn(1, 3, side, side))
    assert len(engine._graphs) == 0


def test_operators_of_the_library():
    """In place, views, several outputs, results that change from call to call."""

    def compute(x, y):
        z = torch.cat([x, y]).mul(2)
        z[1:].add_(1)
        z.unflatten(0, (2, -1))[0].clamp_(max=0)
        low, high = z.aminmax()
        return {"z": z[2:], "ends": (low, high), "same": x}

    graphs = Graphs(cpu_capture)
    for seed in range(4):
        x, y = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        got, expected = graphs("key", compute, [x.clone(), y.clone()]), compute(x.clone(), y.clone())
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert len(graphs) == 1


def test_values_that_steer_python():
    """A computation that reads an element is never replayed for other elements."""
    graphs = Graphs(cpu_capture)
    for value in (1.0, -1.0, 2.0, -2.0):
        got = graphs("key", lambda x: x + 1 if x.sum() > 0 else -x, [torch.tensor([value])])
        assert got.item() == (value + 1 if value > 0 else -value)
    assert len(graphs) == 0


@needs_core
def test_kernels_can_be_kept():
    """`_core.Calls`: arguments are checked when a call is added, and read again when it runs."""
    core = native.core()
    calls = core.Calls()
    with pytest.raises(ValueError, match="must be one of kernels"):
        calls.add("nothing", 0, 1, {})
    with pytest.raises(TypeError, match="is missing"):
        calls.add("thin", 0, 1, {})
    mask, out = torch.zeros(2, 1, 3, dtype=torch.uint8)
    calls.add("thin", 0, 1, {"out": out.data_ptr(), "mask": mask.data_ptr(), "h": 1, "w": 3})
    assert len(calls) == 1
    for pixel in (0, 2):
        mask.zero_()[0, pixel] = 1
        calls.run()
        assert torch.equal(out, mask)
