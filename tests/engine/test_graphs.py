"""CUDA graphs as the engine captures them, on a `torch.cuda` of the CPU (`tests/fakecuda.py`)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.engine.graphs import CudaCapture, Graphs
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

        graphs = Graphs(CudaCapture())
        for value in (1.0, 2.0, 3.0):
            assert graphs("key", compute, [torch.full((3,), value)])["y"].tolist() == 3 * [2 * value]
    assert fake.captures == 1


def test_a_host_synchronisation_fails(fake):
    with pytest.raises(RuntimeError, match="capturing"):
        Graphs(CudaCapture())("key", lambda x: x * float(x.sum()), [torch.ones(2)])


def test_results_are_the_callers(fake):
    """In place, views, several outputs; a later replay leaves earlier results alone."""

    def compute(x, y):
        z = x + y
        z.mul_(2)
        return [z[1:], (z.sum(), torch.cat([x, y]))]

    graphs = Graphs(CudaCapture())
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
    engine._graphs = Graphs(CudaCapture())
    for seed, size in enumerate([(64, 64), (32, 64), (64, 64), (32, 64)]):
        image, noise = torch.randn(1, 3, *size), CounterNoise(seed)
        found, expected = (e.maps(image, noise=noise).maps for e in (engine, plain))
        assert all(torch.equal(found[task], expected[task]) for task in expected)
    assert fake.captures == 2


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
