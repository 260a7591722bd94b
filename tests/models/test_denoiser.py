"""The denoiser's parts: tokens, task batching, and how an untrained MTDNet starts."""

import pytest
import torch
import torch.nn.functional as F

from dmtl.models import build_model
from dmtl.models.denoiser import tokens, upsampled
from tests.models.cases import TASKS, small_config, small_model


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (16, 4)])
def test_tokens_are_a_bilinear_reduction(reduction, size):
    x = torch.randn(3, 5, *size)
    expected = F.interpolate(x, scale_factor=1 / reduction, mode="bilinear", align_corners=False)
    out = tokens(x, reduction)
    torch.testing.assert_close(out, expected.flatten(2).transpose(1, 2))
    back = F.interpolate(expected, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled(out, size, reduction), back)


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_tasks_together_equal_tasks_alone(diffusion):
    """All tasks' rows pass the shared blocks as one batch; who else is in it changes no task's result."""
    config = small_config(diffusion=diffusion)
    denoiser = small_model(diffusion=diffusion).mtdnet.denoiser
    rows = {"normals": 3, "semseg": 1, "edge": 2}
    channels = {t: config.width if diffusion == "feature" else TASKS[t].channels for t in rows}
    noisy = {t: torch.randn(n, channels[t], 8, 4) for t, n in rows.items()}
    condition = torch.randn(6, 2, config.width)
    together, start = denoiser(condition, noisy, 1.0), 0
    assert list(together) == list(rows)
    for task, n in rows.items():
        alone = denoiser(condition[start : start + n], {task: noisy[task]}, 1.0)[task]
        torch.testing.assert_close(together[task], alone, rtol=1e-4, atol=1e-5)
        start += n
        if diffusion == "feature":
            assert together[task].min() >= 0  # an estimate of a rectified feature
    other = denoiser(condition, noisy, 0.0)
    assert all(not torch.allclose(other[t], together[t], rtol=1e-3) for t in rows)


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_identity_start_hands_the_image_on(diffusion):
    """Contrast of the final map of an untrained chain, in units of the initial map's: kept, not lost."""
    image = torch.randn(2, 3, 64, 64)

    def contrast(chain_init: str) -> float:
        torch.manual_seed(0)
        model = build_model(small_config(diffusion=diffusion, chain_init=chain_init)).eval()
        with torch.no_grad():
            out = model(image, ["semseg"])
        return float(
            out.final["semseg"].std(dim=(2, 3)).mean() / out.initial["semseg"].std(dim=(2, 3)).mean()
        )

    assert contrast("identity") > 3 * contrast("default")


def test_initialisation_is_part_of_the_configuration_not_of_the_weights():
    a, b = (build_model(small_config(chain_init=kind)) for kind in ("identity", "default"))
    assert list(a.state_dict()) == list(b.state_dict())
    centre = a.mtdnet.denoiser.pre_layers["edge"].weight[:, :, 1, 1].diagonal()
    assert (centre - 1).abs().mean() < 0.1 and not a.mtdnet.denoiser.pre_layers["edge"].bias.any()


def test_detached_signal_spares_the_initial_network():
    model = small_model(detach_signal=True)
    out = model(torch.randn(1, 3, 32, 32))
    sum(m.sum() for m in out.final.values()).backward()
    assert all(p.grad is None for p in model.initial.parameters())
    assert all(p.grad is not None for p in model.mtdnet.parameters())
