"""The engine computes the model's function: against the model, the published network, and itself."""

import gc
import json
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import dmtl
from dmtl.diffusion import ArrayNoise, CounterNoise
from dmtl.engine import engine as engine_module
from dmtl.engine.engine import Engine
from dmtl.engine.graphs import Graphs
from dmtl.engine.network import Network
from dmtl.engine.numerics import Form
from dmtl.models.published import model_from_published
from tests import golden
from tests.models.cases import TASKS, small_model

MODELS = [
    dict(diffusion="feature"),
    dict(diffusion="feature", residual=True, detach_signal=True),
    dict(diffusion="feature", signal_scale=2.0, steps=3, eta=0.5, token_reduction=2, decoder_blocks=2),
    dict(diffusion="feature", betas=[0.02, 0.05, 0.1]),
    dict(diffusion="prediction"),
    dict(diffusion="prediction", residual=True, steps=1, token_reduction=1),
    dict(diffusion="none"),
    dict(diffusion="feature", output_stride=4),
    dict(diffusion="prediction", residual=True, output_stride=4),
    dict(diffusion="none", output_stride=4),
    dict(diffusion="feature", without=["condition", "noise"], steps=3),
    dict(diffusion="prediction", without=["noise"], residual=True),
]


def ids(options: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


def relative(a, b) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def assert_close(engine_maps: dict, model_maps: dict, tolerance: float = 1e-5) -> None:
    assert list(engine_maps) == list(model_maps)
    for task, expected in model_maps.items():
        got = engine_maps[task]
        assert got.shape == expected.shape and got.dtype == expected.dtype
        if got.dtype == torch.int64:
            assert (got != expected).float().mean() <= tolerance * 100
        else:
            assert relative(got, expected) < tolerance, task


@pytest.mark.parametrize("options", MODELS, ids=ids)
@pytest.mark.parametrize("form", ["apart", "packed", pytest.param("packed-weights", marks=pytest.mark.slow)])
def test_same_function(options, form):
    model = small_model(**options)
    engine = Engine(model)
    if form != "apart":
        chosen = Form(apart=form == "packed-weights", pack=form == "packed-weights")
        with torch.inference_mode():
            engine.form, engine.network = chosen, Network(small_model(**options), chosen)
    image = torch.randn(3, 3, 70, 100)
    noise = CounterNoise(7, torch.tensor([5, 0, 9]))
    for tasks in (None, ["edge"], ["heat", "semseg"], []):
        out, expected = (m.maps(image, tasks, noise=noise) for m in (engine, model))
        assert_close(out.maps, expected.maps)
        assert all(bool(out.finite[t]) for t in out.maps) and list(out.finite) == list(out.maps)
        with torch.no_grad():
            expected = model(image, tasks, noise=noise)
        out = engine(image, tasks, noise=noise)
        assert_close(out.final, expected.final)
        assert_close(out.initial, expected.initial)


def test_the_model_is_left_alone_and_its_memory_is_not_kept():
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Engine(model, precision="bf16").maps(torch.randn(1, 3, 32, 32))
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    taken = Engine(small_model(), inplace=True)
    image = torch.randn(1, 3, 32, 32)
    assert_close(taken.maps(image).maps, model.maps(image).maps)


GOLDEN = [
    pytest.param("fp32", None, 1e-4, id="fp32"),
    pytest.param("bf16", (torch.float32, torch.bfloat16), 2e-2, id="bf16-tokens", marks=pytest.mark.slow),
    pytest.param("bf16", (torch.bfloat16, torch.float32), 2e-2, id="bf16-maps", marks=pytest.mark.slow),
    pytest.param("bf16", (torch.bfloat16, torch.bfloat16), 3e-2, id="bf16-both", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", ["eval_a", pytest.param("eval_b", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("precision", "dtypes", "bar"), GOLDEN)
def test_golden_predictions(golden_dir, monkeypatch, case, precision, dtypes, bar):
    if dtypes:
        monkeypatch.setattr(engine_module, "choose_form", lambda *_: Form(*dtypes))
    stored = np.load(golden_dir / f"{case}.npz")
    meta = json.loads(str(stored["meta"]))
    size = meta["B"], meta["H"], meta["W"]
    model = model_from_published(golden.published_state(golden_dir, meta["T"]))
    engine = Engine(model, precision=precision, inplace=True)
    out = engine(golden.image(case, *size), noise=ArrayNoise(golden.noise(case, meta["T"], *size)))
    for task in golden.CHANNELS:
        assert relative(out.final[task], torch.from_numpy(stored[task])) < bar, task


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [MODELS[0], MODELS[3]], ids=ids)
def test_lower_precision_everywhere(options, dtype):
    """Maps and tokens in 16 bits, whatever is faster here."""
    model, image = small_model(**options), torch.randn(2, 3, 64, 64)
    engine = Engine(model)
    with torch.inference_mode():
        engine.network = Network(small_model(**options), Form(dtype, dtype, apart=False))
    with torch.no_grad():
        expected = model(image).final
    for task, logits in engine(image).final.items():
        assert logits.dtype == torch.float32 and relative(logits, expected[task]) < 3e-2


def test_draws_are_averaged():
    model, image = small_model(signal_scale=0.5), torch.randn(2, 3, 48, 64)
    engine = Engine(model, samples=3)
    out = engine.maps(image)
    logits = [engine(image, noise=CounterNoise(0).another(k)).final for k in range(3)]
    for name, task in model.tasks.items():
        values = torch.stack([task.values(draw[name]) for draw in logits])
        torch.testing.assert_close(out.maps[name], task.from_values(values.mean(0)), rtol=1e-4, atol=1e-5)
        assert out.uncertainty[name].shape == (2, 48, 64) and bool((out.uncertainty[name] >= 0).all())
        expected = task.uncertainty(values.mean(0), values.var(0, correction=0).sum(1))
        torch.testing.assert_close(out.uncertainty[name], expected, rtol=1e-2, atol=1e-3)
    assert not engine.maps(image, samples=1).uncertainty
    assert_close(engine.maps(image, samples=1).maps, model.maps(image).maps)
    with pytest.raises(ValueError, match="samples must be 1 if noise is a ArrayNoise"):
        engine.maps(image, noise=ArrayNoise({}))


def test_bands_equal_the_whole(monkeypatch):
    from dmtl.engine import noise

    draws = [torch.randn(2, 4, 9, 7) for _ in range(3)]
    whole = [noise.average(TASKS["semseg"], draws, (70, 53), 8)]
    for elements in (1, 2 * 4 * 7 * 64 * 4):
        monkeypatch.setattr(noise, "BAND", elements)
        whole.append(noise.average(TASKS["semseg"], draws, (70, 53), 8))
    for maps, uncertain in whole[1:]:
        assert torch.equal(maps, whole[0][0])
        torch.testing.assert_close(uncertain, whole[0][1])


def test_automatic_steps():
    model, image = small_model(), torch.randn(1, 3, 64, 64)
    never, at_once = Engine(model, steps="auto", tolerance=0.0), Engine(model, steps="auto", tolerance=1e9)
    assert never.maps(image).steps == 8
    out = at_once.maps(image)
    assert out.steps == 2  # the first change that can be seen
    with torch.no_grad():
        trace = model(image, steps=8, trace=True).trace
    expected = {name: task.decode(trace[name][1]) for name, task in model.tasks.items()}
    assert_close(out.maps, expected)
    assert Engine(small_model(steps=12), steps="auto", tolerance=0.0).maps(image).steps == 12
    assert Engine(small_model(diffusion="none"), steps="auto").maps(image).steps == 0


class Recorded:
    """A capture as a GPU's, on the CPU: replaying computes from the captured inputs into the same outputs."""

    def __init__(self):
        self.captures = 0

    def __call__(self, compute, inputs):
        self.captures += 1
        outputs = compute(*inputs)

        def replay() -> None:
            for old, new in zip(_tensors(outputs), _tensors(compute(*inputs)), strict=True):
                old.copy_(new)

        return replay, outputs, 0


def _tensors(values) -> list:
    return [x for x in torch.utils._pytree.tree_leaves(values) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize(
    "options",
    [pytest.param(each, marks=[pytest.mark.slow] if n % 3 else []) for n, each in enumerate(MODELS)],
    ids=ids,
)
def test_replayed_graphs(options):
    """New images, seeds and samples of the same kind are replayed; other kinds are captured when they come
    again."""
    model, capture = small_model(**options), Recorded()
    plain, engine = Engine(model), Engine(model)
    engine._graphs = Graphs(capture, limit=2)
    images = [torch.randn(2, 3, 64, 64) for _ in range(3)]
    for seed, image in enumerate(images):
        noise = CounterNoise(seed - 1, torch.tensor([seed, 4]))
        assert_close(engine.maps(image, noise=noise).maps, plain.maps(image, noise=noise).maps, 1e-6)
    assert capture.captures == 1
    kinds = [dict(steps=4), dict(tasks=["edge"]), dict(eta=0.0), dict(sampler="dpmpp_2m", steps=4)]
    for kind in kinds:
        expected = plain.maps(images[0], **kind).maps
        for _ in range(2):
            assert_close(engine.maps(images[0], **kind).maps, expected, 1e-6)
    assert capture.captures == 5 and len(engine._graphs) == 2
    engine.maps(images[0], samples=2)
    out, expected = (e.maps(images[1], samples=2) for e in (engine, plain))
    assert capture.captures == (6 if engine.network.mtdnet is None else 5)  # a CPU records one sample only
    assert_close(out.maps, expected.maps, 1e-6)
    assert list(out.uncertainty) == list(expected.uncertainty)
    engine.maps(images[1])
    first = engine.maps(images[0]).maps
    kept = {t: m.clone() for t, m in first.items()}
    engine.maps(images[1])
    assert all(torch.equal(first[t], kept[t]) for t in kept)  # results are the caller's own


@pytest.mark.slow
def test_many_requests():
    """Random kinds of call through one engine: each answer is a fresh engine's, and memory does not grow."""
    draw = random.Random(0)
    model = small_model()
    engine = Engine(model)
    engine._graphs = Graphs(Recorded(), limit=4)
    growth = []
    for number in range(48):
        if number % 2 == 0:  # each kind twice, so that it is captured
            shape = (draw.randint(1, 3), 3, draw.choice([32, 50, 64, 96]), draw.choice([32, 33, 64]))
            tasks = draw.sample(list(model.tasks), draw.randint(1, 4))
            steps = draw.choice([None, 1, 2, 3, "auto"])
        image = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        out = engine.maps(image, tasks, steps=steps)
        expected = Engine(model).maps(image, tasks, steps=steps)
        assert out.steps == expected.steps
        assert_close(out.maps, expected.maps, 1e-6)
        growth.append(_resident())
    assert growth[-1] < 1.05 * max(growth[20:28])


def test_dropped_engine_frees_its_memory():
    """Its parameters and recordings do not wait for the garbage collector, which may be off."""
    engine = Engine(small_model())
    for _ in range(3):  # computed, recorded, replayed
        engine.maps(torch.zeros(1, 3, 32, 32))
    network = weakref.ref(engine.network)
    gc.collect()
    gc.disable()
    try:
        del engine
        assert network() is None
    finally:
        gc.enable()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precision="int8"), "precision must be one of auto, fp32, bf16 on a cpu, got 'int8'"),
        (dict(tasks=["edgy"]), "tasks must be among semseg, normals, edge, heat, got 'edgy'"),
        (dict(steps=0), 'steps must be an integer of at least 1, "auto" or None, got 0'),
        (dict(samples=0), "samples must be an integer of at least 1, got 0"),
        (dict(tile=100), "tile must be 0 or a multiple of 32, got 100"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"Engine: {message}"):
        Engine(small_model(), **options)


def test_bad_arguments():
    engine = Engine(small_model())
    with pytest.raises(TypeError, match="model must be a DiffusionMTL"):
        Engine(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"image must be a float32 tensor, got torch.uint8"):
        engine.maps(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"image must have shape \[B, 3, H, W\]"):
        engine.maps(torch.zeros(3, 32, 32))


def test_the_documented_example(monkeypatch):
    text = (Path(__file__).resolve().parents[2] / "docs" / "inference.md").read_text()
    monkeypatch.setattr(dmtl, "from_pretrained", lambda folder: small_model())
    names = {"image": torch.randn(1, 3, 40, 50)}
    exec(text.split("## The engine")[1].split("```python\n")[1].split("```")[0], names)
    assert names["out"].maps["semseg"].shape == (1, 40, 50) and bool(names["out"].finite["semseg"])
