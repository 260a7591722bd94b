"""The inference graph compiles whole and exports, with the eager result."""

import pytest
import torch

from dmtl.diffusion import CounterNoise
from tests.models.cases import TASKS, small_model

TINY = dict(tasks=("semseg", "edge"), width=16, blocks=1)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def same(a, b):
    assert list(a) == list(b)
    for task in b:
        torch.testing.assert_close(a[task], b[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, dict(noise=CounterNoise(3, torch.tensor([9, 2])))),
        pytest.param(
            dict(diffusion="prediction", residual=True, token_reduction=2),
            dict(steps=3, eta=0.0, trace=True),
            marks=pytest.mark.slow,
        ),
        (dict(diffusion="none"), dict(tasks=("edge",))),
        pytest.param(dict(without=["noise", "condition"]), {}, marks=pytest.mark.slow),
        pytest.param(dict(sampler="dpmpp_2m"), dict(steps=4), marks=pytest.mark.slow),
    ],
)
def test_whole_graph(options, arguments):
    """From a cold start: nothing was computed eagerly, and so cached, before."""
    compiled = torch.compile(small_model(**(TINY | options)), fullgraph=True, backend="aot_eager")
    model, image = small_model(**(TINY | options)), torch.randn(2, 3, 40, 33)
    out, expected = compiled(image, **arguments), model(image, **arguments)
    same(out.final, expected.final)
    same(out.initial, expected.initial)
    assert out.trace.keys() == expected.trace.keys()


def test_whole_graph_after_an_eager_call():
    model, image = small_model(**TINY), torch.randn(1, 3, 32, 32)
    expected = model(image).final
    same(torch.compile(model, fullgraph=True, backend="aot_eager")(image).final, expected)
    same(model(image).final, expected)


@pytest.mark.parametrize("options", [{}, dict(diffusion="prediction"), dict(diffusion="none")])
def test_export(options):
    model, image = small_model(**options), torch.randn(2, 3, 64, 64)
    program = torch.export.export(model, (image,))
    expected = model(image)
    out = program.module()(image)
    same(out.final, expected.final)
    same(out.initial, expected.initial)
    assert list(out.final) == list(TASKS)
    same(model(image).final, expected.final)  # tracing leaves nothing behind
    ops = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if options.get("diffusion") != "none":
        assert {"dmtl.q_sample.default", "dmtl.posterior_step.default"} <= ops


def test_export_with_a_dynamic_batch(tmp_path):
    model = small_model(**TINY)
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 5):
        image = torch.randn(batch, 3, 32, 32)
        same(loaded(image).final, model(image).final)
