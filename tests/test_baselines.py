"""The baselines that speed is told against compute what our model computes."""

import pytest
import torch

from benchmarks.published import Published, drawn_noise
from tests.models.cases import small_model


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_published_execution(diffusion, reduction):
    model, image = (
        small_model(diffusion=diffusion, token_reduction=reduction, steps=3),
        torch.randn(2, 3, 64, 32),
    )
    with torch.no_grad():
        expected = model(image).final
        out = Published(model, drawn_noise(model, image, 3))(image)
        part = Published(model, drawn_noise(model, image, 3))(image, ["edge"])
        other = Published(model)(image)
    assert list(out) == list(expected) and list(part) == ["edge"]
    for task, logits in expected.items():
        torch.testing.assert_close(out[task], logits, rtol=1e-3, atol=1e-4)
        assert not torch.equal(other[task], out[task])  # without given noise it draws its own
    torch.testing.assert_close(part["edge"], out["edge"])
