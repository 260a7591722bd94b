"""The denoiser's parts: tokens, task batching, and how an untrained MTDNet starts."""

import pytest
import torch
import torch.nn.functional as F

from dmtl.diffusion import Pairs
from dmtl.models import create_model
from tests.models.cases import TASKS, small_config, small_model


def denoised(denoiser, tokens, noisy: dict, level: float, fold: bool = False) -> dict:
    """One call for all rows; noisy is task -> [n, C, h, w]."""
    pairs = Pairs.of({task: torch.arange(x.shape[0]) for task, x in noisy.items()}, 1)
    layers = denoiser.layers(pairs.tasks, fold=fold, pack=fold)
    signals = [torch.cat(list(noisy.values()))] if denoiser.features else list(noisy.values())
    out = denoiser(tokens, None, signals, pairs, level, layers)
    return pairs.split(out[0]) if denoiser.features else dict(zip(pairs.tasks, out, strict=True))


def some_rows(diffusion: str, **options):
    """A denoiser, condition tokens of six rows, and the noisy signals of three tasks."""
    config = small_config(diffusion=diffusion, **options)
    denoiser = small_model(diffusion=diffusion, **options).mtdnet.denoiser
    rows = {"normals": 3, "semseg": 1, "edge": 2}
    channels = {t: config.width if diffusion == "feature" else TASKS[t].channels for t in rows}
    noisy = {t: torch.randn(n, channels[t], 8, 4) for t, n in rows.items()}
    return denoiser, torch.randn(6, 32 // config.token_reduction**2, config.width), noisy


def published_denoiser(denoiser, tokens, x, task: str, level: float, reduction: int):
    """One task's rows through the layers one by one, in plain torch, as the published network runs them."""
    time = denoiser.time_embedding(torch.full((1,), level))
    skip = denoiser.pre_layers[task](x) + time[:, :, None, None]
    small = F.interpolate(skip, scale_factor=1 / reduction, mode="bilinear", align_corners=False)
    y = small.flatten(2).transpose(1, 2)
    for block in denoiser.blocks:
        y = y + block.mlp_kv.fc2(F.gelu(block.mlp_kv.fc1(block.norm2_kv(y))))
        q = block.attn.q(block.norm1(tokens)).unflatten(-1, (block.attn.heads, -1)).transpose(1, 2)
        k, v = block.attn.kv(block.norm_kv(y)).unflatten(-1, (2, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
        out = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        tokens = tokens + block.attn.proj(out.transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))
    grid = tokens.transpose(1, 2).unflatten(-1, small.shape[-2:])
    up = F.interpolate(grid, skip.shape[-2:], mode="bilinear", align_corners=False)
    return denoiser.trunks[task](up + skip)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_against_the_layers_one_by_one(diffusion, reduction, fold):
    denoiser, tokens, noisy = some_rows(diffusion, token_reduction=reduction)
    with torch.no_grad():
        together, start = denoised(denoiser, tokens, noisy, 1.0, fold), 0
        for task, x in noisy.items():
            rows = tokens[start : start + len(x)]
            expected = published_denoiser(denoiser, rows, x, task, 1.0, reduction)
            torch.testing.assert_close(together[task], expected, rtol=1e-4, atol=1e-5)
            start += len(x)


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_tasks_together_equal_tasks_alone(diffusion):
    """All tasks' rows pass the shared blocks as one batch; who else is in it changes no task's result."""
    denoiser, tokens, noisy = some_rows(diffusion)
    together, start = denoised(denoiser, tokens, noisy, 1.0), 0
    assert list(together) == list(noisy)
    for task, x in noisy.items():
        alone = denoised(denoiser, tokens[start : start + len(x)], {task: x}, 1.0)[task]
        torch.testing.assert_close(together[task], alone, rtol=1e-4, atol=1e-5)
        start += len(x)
        if diffusion == "feature":
            assert together[task].min() >= 0  # an estimate of a rectified feature
    other = denoised(denoiser, tokens, noisy, 0.0)
    assert all(not torch.allclose(other[t], together[t], rtol=1e-3) for t in noisy)


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_identity_start_hands_the_image_on(diffusion):
    """Contrast of the final map of an untrained chain, in units of the initial map's: kept, not lost."""
    image = torch.randn(2, 3, 64, 64)

    def contrast(chain_init: str) -> float:
        torch.manual_seed(0)
        model = create_model(small_config(diffusion=diffusion, chain_init=chain_init)).eval()
        with torch.no_grad():
            out = model(image, ["semseg"])
        return float(
            out.final["semseg"].std(dim=(2, 3)).mean() / out.initial["semseg"].std(dim=(2, 3)).mean()
        )

    assert contrast("identity") > 3 * contrast("default")


def test_initialisation_is_part_of_the_configuration_not_of_the_weights():
    a, b = (create_model(small_config(chain_init=kind)) for kind in ("identity", "default"))
    assert list(a.state_dict()) == list(b.state_dict())
    centre = a.mtdnet.denoiser.pre_layers["edge"].weight[:, :, 1, 1].diagonal()
    assert (centre - 1).abs().mean() < 0.1 and not a.mtdnet.denoiser.pre_layers["edge"].bias.any()


def test_detached_signal_spares_the_initial_network():
    model = small_model(detach_signal=True)
    out = model(torch.randn(1, 3, 32, 32))
    sum(m.sum() for m in out.final.values()).backward()
    assert all(p.grad is None for p in model.initial.parameters())
    assert all(p.grad is not None for p in model.mtdnet.parameters())
