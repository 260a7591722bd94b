"""What a call of the model promises: shapes, subsets, batches, noise, steps, mechanisms."""

import pytest
import torch
import torch.nn.functional as F

from dmtl import ops
from dmtl.diffusion import ArrayNoise, CounterNoise
from dmtl.models import DiffusionMTL, MultiTaskBaseline, create_model
from dmtl.ops.registry import REGISTRY
from tests.models.cases import TASKS, small_config, small_model
from tests.ops.tools import DEVICE, backend_params, serves

CHANNELS = {"semseg": 4, "normals": 3, "edge": 1, "heat": 1}
MECHANISMS = ["feature", "prediction"]


@pytest.fixture(scope="module")
def models() -> dict[str, DiffusionMTL]:
    return {diffusion: small_model(diffusion=diffusion) for diffusion in MECHANISMS}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def same(a, b, tolerance=1e-5):
    """Equal keys, shapes, and values within a relative L2 distance."""
    assert list(a) == list(b)
    for task in a:
        assert a[task].shape == b[task].shape, task
        assert float((a[task] - b[task]).norm()) <= tolerance * float(b[task].norm()), task


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (1, 1), (33, 31), (50, 71), (65, 32)])
@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_any_size_is_padded_inside_and_cropped_back(models, diffusion, size):
    image = torch.randn(2, 3, *size)
    height, width = (-(-n // 32) * 32 for n in size)
    out = models[diffusion](image, trace=True)
    padded = models[diffusion](F.pad(image, (0, width - size[1], 0, height - size[0])), trace=True)
    for task, channels in CHANNELS.items():
        assert out.final[task].shape == out.initial[task].shape == (2, channels, *size)
        assert torch.equal(out.final[task], padded.final[task][..., : size[0], : size[1]])
        assert torch.equal(out.initial[task], padded.initial[task][..., : size[0], : size[1]])
        assert torch.equal(out.trace[task][0], padded.trace[task][0][..., : size[0], : size[1]])


@pytest.mark.parametrize("tasks", [["edge"], ["normals", "semseg"], ["heat", "edge", "semseg"], []])
@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_a_subset_of_tasks_gives_their_share_of_the_whole(models, diffusion, tasks):
    image = torch.randn(2, 3, 64, 32)
    whole, part = models[diffusion](image, trace=True), models[diffusion](image, tasks, trace=True)
    assert list(part.final) == list(part.initial) == list(part.trace) == tasks
    same(part.final, {task: whole.final[task] for task in tasks})
    same(part.initial, {task: whole.initial[task] for task in tasks})


@pytest.mark.parametrize(
    ("diffusion", "backend"),
    [
        pytest.param(mechanism, *backend.values, marks=[*backend.marks, *slow])
        for mechanism in MECHANISMS
        for backend in backend_params("cpu", "triton", "cuda")
        for slow in [
            [] if mechanism == "prediction" and backend.values != ("triton",) else [pytest.mark.slow]
        ]
    ],
)
def test_every_backend_gives_the_same_model(diffusion, backend):
    """Maps, predictions and gradients with every op that the backend has by that backend."""
    names = {name for name, spec in REGISTRY.items() if not serves(spec, backend, torch.float32)}
    if diffusion == "prediction" and backend == "triton":
        names.discard("conv3x3")  # it wants channels in eights, and logits are what they are
    results = []
    for choice in ("reference", backend):
        model = small_model(diffusion=diffusion, blocks=1).to(DEVICE)
        with torch.enable_grad(), ops.use_backend(**dict.fromkeys(names, choice)):
            torch.manual_seed(3)
            image = torch.randn(2, 3, 64, 32).to(DEVICE)
            decoded = model.maps(image, ["semseg", "normals"]).maps["normals"]
            labelled = {"semseg": torch.tensor([1]).to(DEVICE), "edge": torch.tensor([0, 1]).to(DEVICE)}
            final = model(image, labelled=labelled).final
            sum(logits.square().mean() for logits in final.values()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append({"normals": decoded} | final | gradients)
    same(*results, tolerance=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(diffusion="prediction"),
        dict(residual=True),
        dict(diffusion="prediction", residual=True),
        dict(diffusion="none"),
    ],
)
def test_maps_are_the_decoded_logits(options, size):
    model, image = small_model(**options), torch.randn(2, 3, *size)
    out = model.maps(image, noise=CounterNoise(4))
    logits = model(image, noise=CounterNoise(4)).final
    assert list(out.maps) == list(out.finite) == list(logits) and all(out.finite.values())
    for name, task in model.tasks.items():
        expected = task.decode(logits[name])
        assert out.maps[name].dtype == expected.dtype
        if task.decoding == "argmax":  # equal logits up to rounding may be decided either way
            assert (out.maps[name] == expected).float().mean() > 0.999
        else:
            torch.testing.assert_close(out.maps[name], expected, rtol=1e-4, atol=1e-5)
    part = model.maps(image, ["edge"], noise=CounterNoise(4)).maps
    assert list(part) == ["edge"] and model.maps(image, []).maps == {}
    torch.testing.assert_close(part["edge"], out.maps["edge"], rtol=1e-4, atol=1e-5)


def test_maps_tell_what_is_not_finite():
    model = small_model()
    model.mtdnet.heads["semseg"].weight[0] = float("nan")
    out = model.maps(torch.randn(1, 3, 32, 32))
    assert not out.finite["semseg"] and out.finite["edge"]


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5])
def test_a_sample_does_not_depend_on_its_batch(models, batch):
    image, samples = torch.randn(batch, 3, 32, 64), torch.randperm(batch) + 3
    out = models["feature"](image, noise=CounterNoise(5, samples))
    assert all(m.shape == (batch, CHANNELS[t], 32, 64) for t, m in out.final.items())
    for row in range(batch):
        alone = models["feature"](image[row : row + 1], noise=CounterNoise(5, samples[row : row + 1]))
        same(alone.final, {t: m[row : row + 1] for t, m in out.final.items()})


@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_labelled_pairs_are_a_slice_of_the_whole(models, diffusion):
    image, noise = torch.randn(4, 3, 64, 64), CounterNoise(1, torch.tensor([7, 5, 3, 11]))
    rows = {"semseg": [0, 2, 3], "normals": [], "heat": [1]}
    labelled = {task: torch.tensor(r, dtype=torch.int64) for task, r in rows.items()}
    whole, part = (
        models[diffusion](image, noise=noise),
        models[diffusion](image, labelled=labelled, noise=noise),
    )
    assert list(part.final) == ["semseg", "heat"]
    same(part.final, {t: whole.final[t][rows[t]] for t in part.final})
    same(part.initial, {t: whole.initial[t][rows[t]] for t in part.final})


def test_no_label_at_all(models):
    out = models["feature"](torch.randn(2, 3, 32, 32), labelled={"edge": torch.zeros(0, dtype=torch.int64)})
    assert out.final == out.initial == out.trace == {}


@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_noise_replays_and_matters(models, diffusion):
    model, image = models[diffusion], torch.randn(2, 3, 32, 32)
    first, again, other = (
        model(image),
        model(image, noise=CounterNoise(0)),
        model(image, noise=CounterNoise(1)),
    )
    for task in TASKS:
        assert torch.equal(first.final[task], again.final[task])
        assert not torch.allclose(first.final[task], other.final[task], rtol=1e-4)
        assert torch.equal(first.initial[task], other.initial[task])


def test_the_callers_noise_is_used(models):
    image = torch.randn(2, 3, 32, 32)
    arrays = {task: torch.randn(2, 2, 32, 4, 4) for task in TASKS}
    reference = models["feature"](image, noise=ArrayNoise(arrays)).final["semseg"]
    for draw in (0, 1):
        changed = {task: a.clone() for task, a in arrays.items()}
        changed["semseg"][draw] += 1
        out = models["feature"](image, noise=ArrayNoise(changed)).final
        assert not torch.allclose(out["semseg"], reference, rtol=1e-4)
    with pytest.raises(ValueError, match="arrays must hold draw 1 of task 'semseg', got 1 draws"):
        models["feature"](image, noise=ArrayNoise({task: a[:1] for task, a in arrays.items()}))


def test_deterministic_sampler_draws_once(models):
    """eta = 0 adds no noise after the forward process: the later draws do not matter."""
    image, arrays = torch.randn(1, 3, 32, 32), {task: torch.randn(3, 1, 32, 4, 4) for task in TASKS}
    changed = {task: torch.cat([a[:1], torch.randn(2, 1, 32, 4, 4)]) for task, a in arrays.items()}
    outs = [models["feature"](image, steps=3, eta=0.0, noise=ArrayNoise(a)).final for a in (arrays, changed)]
    same(*outs, tolerance=0)
    configured = small_model(eta=0.0)
    same(configured(image, steps=3, noise=ArrayNoise(arrays)).final, outs[0], tolerance=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_steps_at_inference_and_their_trace(models, diffusion, steps):
    out = models[diffusion](torch.randn(1, 3, 40, 32), steps=steps, trace=True)
    for task, channels in CHANNELS.items():
        assert [tuple(m.shape) for m in out.trace[task]] == [(1, channels, 40, 32)] * steps
        assert torch.equal(out.trace[task][-1], out.final[task])
        assert torch.isfinite(out.final[task]).all()
    assert models[diffusion](torch.randn(1, 3, 32, 32)).trace == {}


def test_one_step_equals_a_model_of_one_level(models):
    """A chain of one step starts at the model's noisiest level, as a model with that level alone does."""
    model = models["feature"]
    image = torch.randn(1, 3, 32, 32)
    short = small_model(betas=[float(1 - model.mtdnet.schedule.abar[-1])])
    arrays = {task: torch.randn(1, 1, 32, 4, 4) for task in TASKS}
    one = model(image, steps=1, noise=ArrayNoise(arrays)).final
    level0 = short(image, noise=ArrayNoise(arrays)).final
    # They differ in the time embedding alone: level 1 against level 0.
    assert not torch.allclose(one["semseg"], level0["semseg"], rtol=1e-5)
    embedding = model.mtdnet.denoiser.time_embedding
    short.mtdnet.denoiser.time_embedding.of_level = lambda level: embedding.of_level(level + 1)
    same(short(image, noise=ArrayNoise(arrays)).final, one)


@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_residual_starts_at_the_initial_prediction(diffusion):
    model = create_model(small_config(diffusion=diffusion, residual=True)).eval()
    out = model(torch.randn(2, 3, 64, 64), trace=True)
    for task in TASKS:
        for maps in (out.final[task], *out.trace[task]):
            assert torch.equal(maps, out.initial[task])


def test_residual_leaves_the_denoiser_its_own_way():
    plain, residual = small_model(), small_model(residual=True)
    image = torch.randn(1, 3, 32, 32)
    a, b = plain(image), residual(image)
    same(b.final, {t: a.final[t] + a.initial[t] for t in TASKS})


@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_a_large_signal_scale_drowns_the_noise(diffusion):
    image = torch.randn(1, 3, 32, 32)

    def spread(scale):
        model = small_model(diffusion=diffusion, signal_scale=scale)
        a, b = (model(image, steps=1, noise=CounterNoise(seed)).final["semseg"] for seed in (0, 1))
        return float((a - b).norm() / a.norm())

    assert spread(1000.0) < 0.1 * spread(1.0)


def test_condition_reaches_every_task(models):
    """Another initial edge map changes the final semseg map, though semseg's own signal stays."""
    model = small_model()
    image = torch.randn(1, 3, 32, 32)
    before = model(image, ["semseg"]).final["semseg"]
    model.initial.heads["edge"].bias += 1
    after = model(image, ["semseg"])
    assert not torch.allclose(after.final["semseg"], before, rtol=1e-4)


@pytest.mark.parametrize("detach", [True, False])
def test_detached_condition(detach):
    model = small_model(detach_condition=detach)
    with torch.enable_grad():
        model(torch.randn(1, 3, 32, 32), ["semseg"]).final["semseg"].sum().backward()
    assert (model.initial.heads["edge"].weight.grad is None) == detach
    assert model.initial.decoders["semseg"][0].conv1.weight.grad.abs().sum() > 0
    assert model.mtdnet.condition.conv.weight.grad.abs().sum() > 0


def test_an_evaluation_first_does_not_spoil_training():
    model, image = small_model(), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        model(image)
    with torch.enable_grad():
        model(image).final["edge"].sum().backward()
    assert model.mtdnet.heads["edge"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
@pytest.mark.parametrize("diffusion", MECHANISMS)
def test_other_precisions(models, diffusion, dtype, tolerance):
    image = torch.randn(1, 3, 32, 64)
    exact = models[diffusion](image).final
    out = small_model(diffusion=diffusion).to(dtype)(image.to(dtype)).final
    for task in TASKS:
        assert out[task].dtype == dtype
        assert float((out[task].float() - exact[task]).norm() / exact[task].norm()) < tolerance


def test_channels_last(models):
    image = torch.randn(2, 3, 32, 64)
    model = small_model().to(memory_format=torch.channels_last)
    same(model(image.to(memory_format=torch.channels_last)).final, models["feature"](image).final)


@pytest.mark.parametrize("tasks", [tuple(TASKS), ("edge",)])
def test_baseline_is_the_initial_network(tasks):
    model, image = small_model(tasks=tasks, diffusion="none"), torch.randn(3, 3, 50, 40)
    assert isinstance(model, MultiTaskBaseline) and not any(
        k.startswith("mtdnet") for k in model.state_dict()
    )
    out = model(image)
    assert list(out.final) == list(tasks) and out.trace == {}
    for task in tasks:
        assert out.final[task].shape == (3, CHANNELS[task], 50, 40) and out.final[task] is out.initial[task]
    part = model(image, labelled={"edge": torch.tensor([2, 0])}, steps=9, noise=CounterNoise(3), trace=True)
    same(part.final, {"edge": out.final["edge"][[2, 0]]})


@pytest.mark.parametrize("diffusion", ["feature", "none"])
def test_bad_arguments(diffusion):
    model = small_model(diffusion=diffusion)
    name, image = type(model).__name__, torch.randn(1, 3, 32, 32)
    for bad, error, message in [
        (image.byte(), TypeError, "image must be a float tensor, got torch.uint8"),
        (image.numpy(), TypeError, "image must be a float tensor, got ndarray"),
        (image[0], ValueError, r"image must have shape \[B, 3, H, W\], got \[3, 32, 32\]"),
        (image[:, :1], ValueError, r"image must have shape \[B, 3, H, W\], got \[1, 1, 32, 32\]"),
        (image[..., :0], ValueError, "image must have at least one pixel"),
        (image.double(), TypeError, "image must be of the model's dtype torch.float32, got torch.float64"),
    ]:
        with pytest.raises(error, match=f"{name}: {message}"):
            model(bad)
    with pytest.raises(
        ValueError, match=f"{name}: tasks must be among semseg, normals, edge, heat, got 'depth'"
    ):
        model(image, ["semseg", "depth"])
    with pytest.raises(ValueError, match=f"{name}: tasks must be among .*, got 'depth'"):
        model(image, labelled={"depth": torch.tensor([0])})
    for rows in (torch.tensor([True]), [0], torch.tensor([[0]])):
        with pytest.raises(TypeError, match=rf"{name}: labelled\['edge'\] must be an int64 tensor of rows"):
            model(image, labelled={"edge": rows})
    if diffusion == "feature":
        with pytest.raises(ValueError, match="pass either tasks or labelled, not both"):
            model(image, ["edge"], labelled={"edge": torch.tensor([0])})
        for steps in (0, -1):
            with pytest.raises(ValueError, match="plan: steps must be at least 1"):
                model(image, steps=steps)
        with pytest.raises(ValueError, match="eta must be in"):
            model(image, eta=2.0)


@pytest.mark.parametrize("detached", [True, False])
def test_decoders_of_absent_tasks_learn_only_through_the_condition(detached):
    """Where the condition is detached they keep nothing for a gradient; losses and other gradients are those
    of a network that keeps everything."""
    model = small_model(detach_condition=detached).train()
    image, labelled = torch.randn(2, 3, 64, 64), {"semseg": torch.tensor([1])}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        with torch.enable_grad():
            model(image, labelled=labelled).final["semseg"].square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    found = gradients()
    assert any(name.startswith("initial.decoders.normals") for name in found) != detached
    model._learning = lambda *a: None
    kept = gradients()
    assert list(found) == list(kept) and all(torch.equal(found[n], kept[n]) for n in found)
