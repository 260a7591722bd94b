"""CUDA graphs as the engine captures them, on a `torch.cuda` of the CPU (`tests/fakecuda.py`)."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.engine.graphs import Graphs
from tests.fakecuda import FakeCuda
from tests.models.cases import small_model


@pytest.fixture
def fake(monkeypatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_readers_pin_memory_meanwhile(fake):
    """A capture neither fails nor is disturbed when another thread allocates pinned memory."""
    with ThreadPoolExecutor(1) as reader:

        def compute(x):
            reader.submit(fake.pin).result()
            return {"y": 2 * x}

        graphs = Graphs()
        for value in (1.0, 2.0, 3.0):
            assert graphs("key", compute, [torch.full((3,), value)])["y"].tolist() == 3 * [2 * value]
    assert fake.captures == 1


def test_a_host_synchronisation_fails(fake):
    graphs = Graphs()
    graphs("key", lambda x: x * float(x.sum()), [torch.ones(2)])  # eager
    with pytest.raises(RuntimeError, match="capturing"):
        graphs("key", lambda x: x * float(x.sum()), [torch.ones(2)])


def test_results_are_the_callers(fake):
    """In place, views, several outputs; a later replay leaves earlier results alone."""

    def compute(x, y):
        z = x + y
        z.mul_(2)
        return [z[1:], (z.sum(), torch.cat([x, y]))]

    graphs = Graphs()
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(3), torch.randn(3)
        found.append((graphs("key", compute, [x, y]), compute(x, y)))
    for got, want in found:
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, dict(diffusion="prediction"), dict(diffusion="none")], ids=str)
def test_engine(fake, options):
    """Two sizes, new images and seeds: every answer is that of an engine without graphs."""
    model = small_model(**options)
    plain, engine = Engine(model), Engine(model)
    engine._graphs = Graphs()
    for seed, size in enumerate([(64, 64), (32, 64)] * 3):
        image, noise = torch.randn(1, 3, *size), CounterNoise(seed)
        found, expected = (e.maps(image, noise=noise).maps for e in (engine, plain))
        assert all(torch.equal(found[task], expected[task]) for task in expected)
    assert fake.captures == 2


def twice(x):
    """A computation whose graph holds as many bytes as x has."""
    return 2 * x


FIFTY = [torch.arange(1.0, n + 1) for n in range(1, 51)]  # one float32 to fifty


def ask(graphs: Graphs, *inputs: torch.Tensor) -> None:
    for x in inputs:
        torch.testing.assert_close(graphs(len(x), twice, [x]), 2 * x)


def test_a_folder_with_a_size_for_each_image_captures_nothing(fake):
    """Nor does the second trip through it: no graph would be replayed before it is dropped."""
    graphs = Graphs()
    ask(graphs, *FIFTY, *FIFTY)
    assert fake.captures == 0 and len(graphs) == 0


def test_fifty_sizes_are_bounded_in_number_and_memory(fake):
    graphs = Graphs(memory=4 * 120)
    most, number = 0, 0
    for x in FIFTY:
        ask(graphs, x, x, x)  # eager, captured, replayed
        assert fake.reserved == graphs.held
        most, number = max(most, graphs.held), max(number, len(graphs))
    assert fake.captures == 50
    assert most <= 4 * 120 and number == 8
    assert len(graphs) == 2 and graphs.held == 4 * (49 + 50)


def test_the_least_recently_used_graph_is_dropped(fake):
    graphs = Graphs(limit=2)
    a, b, c = FIFTY[:3]
    ask(graphs, a, a, b, b, a, c, c)
    assert fake.captures == 3 and len(graphs) == 2
    ask(graphs, a, c, a, c)
    assert fake.captures == 3
    ask(graphs, b, b)
    assert fake.captures == 4


def test_a_large_graph_is_not_kept(fake):
    """Its signature is computed eagerly from then on, and it drops no other."""
    graphs = Graphs(memory=4 * 10)
    small, large = FIFTY[4], FIFTY[10]
    ask(graphs, small, small, large, large)
    assert fake.captures == 2 and graphs.held == fake.reserved == 4 * 5
    ask(graphs, large, large, small)
    assert fake.captures == 2


def test_images_of_fifty_sizes(fake):
    """Through an engine, in the order of a shuffled folder in which some sizes are frequent."""
    model = small_model(tasks=["edge"], diffusion="none")
    plain, engine = Engine(model), Engine(model)
    engine._graphs = Graphs(memory=8 << 20)
    draw = random.Random(0)
    sizes = [(n, 33) for n in range(15, 65)] + draw.choices([(20, 33), (64, 33), (40, 33)], k=50)
    draw.shuffle(sizes)
    for number, size in enumerate(sizes):
        image = torch.randn(1, 3, *size)
        assert torch.equal(engine.maps(image).maps["edge"], plain.maps(image).maps["edge"]), number
        assert fake.reserved == engine._graphs.held <= 8 << 20
    assert len(set(sizes)) == 50
    assert 3 <= fake.captures <= 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, dict(diffusion="prediction")], ids=str)
def test_engine_on_a_gpu(options):
    """Two sizes, captured and replayed while another thread pins memory, against eager calls."""
    model = small_model(**options).cuda()
    plain, engine = (Engine(model, "cuda", precision="fp32") for _ in range(2))
    plain._graphs = None
    stop = threading.Event()

    def pin() -> None:
        while not stop.is_set():
            torch.empty(1 << 20).pin_memory()

    with ThreadPoolExecutor(1) as reader:
        pinned = reader.submit(pin)
        try:
            for seed, size in enumerate([(64, 64), (32, 64)] * 3):
                image, noise = torch.randn(1, 3, *size, device="cuda"), CounterNoise(seed)
                found, expected = (e.maps(image, noise=noise).maps for e in (engine, plain))
                for task, kind in model.tasks.items():
                    if kind.decoding != "argmax":
                        torch.testing.assert_close(found[task], expected[task], rtol=1e-4, atol=1e-4)
        finally:
            stop.set()
        pinned.result()
    assert len(engine._graphs) == 2
