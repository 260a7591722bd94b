"""Images larger than those of training are seen smaller, by a whole factor; maps keep the image's size."""

import pytest
import torch

from dmtl.engine.engine import Engine
from dmtl.engine.scale import downscale_for, downscaled
from dmtl.errors import ConfigError
from dmtl.models import ModelConfig, from_pretrained
from tests.engine.test_engine import assert_close, relative
from tests.models.cases import small_model


@pytest.mark.parametrize(
    ("trained", "size", "k"),
    [
        (None, (3000, 4000), 1),
        ((128, 160), (128, 160), 1),
        ((128, 160), (255, 319), 1),
        ((128, 160), (256, 320), 2),
        ((128, 160), (320, 256), 2),  # turned
        ((128, 160), (3024, 4032), 24),
        ((128, 160), (16, 20), 1),
    ],
)
def test_the_factor_leaves_the_pixels_of_a_training_image(trained, size, k):
    assert downscale_for(trained, *size) == k
    assert k == 1 or size[0] * size[1] / k**2 >= trained[0] * trained[1]


def test_pixels_are_averaged_and_those_at_the_border_too():
    image = torch.arange(1 * 3 * 5 * 7, dtype=torch.float32).reshape(1, 3, 5, 7)
    small = downscaled(image, 3)
    assert small.shape == (1, 3, 2, 3)
    torch.testing.assert_close(small[0, 0, 0, 0], image[0, 0, :3, :3].mean())
    torch.testing.assert_close(small[0, 0, 1, 2], image[0, 0, 3:, 6:].mean())
    assert downscaled(image, 1) is image


@pytest.mark.parametrize("samples", [1, 2])
def test_maps_of_a_large_image(samples):
    """The small image's logits are upsampled to the large one's size, aligned with its pixels."""
    model, image = small_model(image_size=(48, 64)), torch.randn(2, 3, 150, 197)
    engine, plain = Engine(model, samples=samples), Engine(small_model())
    assert downscale_for(engine.config.image_size, 150, 197) == 3
    out = engine.maps(image, ["heat", "edge"])
    assert {tuple(m.shape) for m in out.maps.values()} == {(2, 150, 197)}
    if samples == 1:
        expected = plain(downscaled(image, 3)).final
        for task, logits in engine(image).final.items():
            assert logits.shape[-2:] == (150, 197)
            means = downscaled(logits[:, :1], 3)[..., 1:-1, 1:-1]
            assert relative(means, expected[task][:, :1, 1:-1, 1:-1]) < 0.02, task
        decoded = {t: model.tasks[t].decode(x) for t, x in engine(image).final.items()}
        assert_close(engine.maps(image).maps, decoded)


def test_the_factor_can_be_chosen():
    image = torch.randn(1, 3, 96, 128)
    seen = Engine(small_model(image_size=(48, 64)), downscale=1).maps(image).maps
    assert_close(seen, small_model().maps(image).maps)
    fixed = Engine(small_model(), downscale=2).maps(image).maps
    assert_close(fixed, Engine(small_model(image_size=(48, 64))).maps(image).maps)
    with pytest.raises(ConfigError, match="downscale must be at least 1, got 0"):
        Engine(small_model(), downscale=0)


def test_a_model_keeps_the_size(tmp_path):
    small_model(image_size=(48, 64)).save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).config == small_model(image_size=(48, 64)).config
    with pytest.raises(ConfigError, match=r"model.image_size must be at least 1x1, got \[0, 4\]"):
        ModelConfig(image_size=(0, 4))
