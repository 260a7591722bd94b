"""The skip decoder (model.output_stride = 4): its function, its start, its gradients, its limits."""

import pytest
import torch
import torch.nn.functional as F

import dmtl
from dmtl.diffusion import CounterNoise
from dmtl.errors import ConfigError
from dmtl.models import create_model
from dmtl.models.initial import factor_of, pad_image
from dmtl.nn.backbone import BACKBONES
from dmtl.tasks import make_task
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.config import OptimConfig
from dmtl.train.loss import pair_losses
from dmtl.train.weighting import make_weighting
from tests.models.cases import small_config, small_model

each_kind = pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
IMAGE = (2, 3, 70, 100)


def up(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@each_kind
def test_starts_from_the_maps_at_one_eighth(diffusion):
    torch.manual_seed(3)
    fine = create_model(small_config(diffusion=diffusion, output_stride=4)).eval()
    coarse = create_model(small_config(diffusion=diffusion)).eval()
    left = coarse.load_state_dict(fine.state_dict(), strict=False)
    assert not left.missing_keys and all(key.startswith("skip.") for key in left.unexpected_keys)
    image = torch.randn(IMAGE)
    with torch.no_grad():
        found, expected = (model(image, upsampled=False) for model in (fine, coarse))
    for task, logits in expected.final.items():
        torch.testing.assert_close(found.final[task], up(logits))
        kept = found.final if diffusion == "none" else found.initial
        torch.testing.assert_close(kept[task], up(logits) if diffusion == "none" else expected.initial[task])


@each_kind
def test_formula(diffusion):
    """The definition in float64, from the parts of the model."""
    model = small_model(diffusion=diffusion, output_stride=4).double()
    image = torch.randn(IMAGE).double()
    with torch.no_grad():
        out = model(image, upsampled=False, trace=True)
        features, logits, _ = model.initial(pad_image(image))
        fine = model.initial.backbone(pad_image(image))[0]
        assert fine.shape[-1] == 128 // 4
        if diffusion != "none":
            rows = dict.fromkeys(model.tasks)
            plan = model.mtdnet.plan(image.device)
            states = model.mtdnet(features, logits, rows, plan, CounterNoise(0), True)
            features, logits = states[-1].by_task(), model.mtdnet.logits(states[-1])
        skip = model.skip
        for task, z in logits.items():
            y = F.relu(up(skip.reduce[task](features[task])) + skip.skip(fine))
            y = F.relu(F.conv2d(y, skip.convs[task].weight, skip.convs[task].bias, padding=1))
            expected = up(z) + skip.heads[task](y)
            torch.testing.assert_close(out.final[task], expected)
            if diffusion != "none":
                torch.testing.assert_close(out.trace[task][-1], expected)


@each_kind
def test_labelled_rows_only(diffusion):
    model, image = small_model(diffusion=diffusion, output_stride=4), torch.randn(3, 3, 64, 64)
    rows = {"edge": torch.tensor([2, 0]), "semseg": torch.tensor([], dtype=torch.int64)}
    noise = CounterNoise(1, torch.arange(3))
    with torch.no_grad():
        part = model(image, labelled=rows, noise=noise).final
        whole = model(image, noise=noise).final
    assert list(part) == ["edge"]
    torch.testing.assert_close(part["edge"], whole["edge"][[2, 0]], rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_upsampled_logits():
    model, image = small_model(output_stride=4), torch.randn(2, 3, 70, 100)
    labels = {"heat": torch.rand(2, 1, 70, 100), "edge": torch.randint(0, 2, (2, 1, 70, 100)).byte()}
    rows = dict.fromkeys(labels, torch.arange(2))
    with torch.no_grad():
        small, large = (model(image, labelled=rows, upsampled=u) for u in (False, True))
        found = pair_losses(small, labels, rows, model.tasks, upsampled=False)
        expected = pair_losses(large, labels, rows, model.tasks)
    for task in labels:
        torch.testing.assert_close(found.final[task], expected.final[task], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.initial[task], expected.initial[task], rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_encoder_or_only_the_decoder():
    model = small_model(output_stride=4).train()
    rows = {"semseg": torch.tensor([1])}
    model(torch.randn(2, 3, 64, 64), labelled=rows).final["semseg"].square().mean().backward()
    assert model.skip.skip.weight.grad.abs().sum() > 0
    assert model.skip.convs["edge"].weight.grad is None
    model.zero_grad()
    for part in (model.initial, model.mtdnet):
        part.requires_grad_(False)
    model(torch.randn(2, 3, 64, 64), labelled=rows).final["semseg"].square().mean().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"skip"}


def test_autocast():
    model, image = small_model(output_stride=4), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image).final
        half["heat"].float().square().mean().backward()
    assert model.skip.reduce["heat"].weight.grad.isfinite().all()
    with torch.no_grad():
        for task, expected in model(image).final.items():
            assert float((half[task].float() - expected).norm() / expected.norm()) < 0.1


def test_an_encoder_without_a_map_at_one_quarter(monkeypatch):
    class Coarse(torch.nn.Module):
        channels = (5, 7)

        def __init__(self):
            super().__init__()
            self.a = torch.nn.Conv2d(3, 5, 8, 8)
            self.b = torch.nn.Conv2d(5, 7, 2, 2)

        def forward(self, image):
            first = self.a(image)
            return [first, self.b(first)]

    monkeypatch.setitem(BACKBONES._entries, "coarse", lambda width: Coarse())
    model = create_model(small_config(backbone="coarse", output_stride=4)).eval()
    image = torch.randn(IMAGE)
    with torch.no_grad():
        assert model(image, upsampled=False).final["edge"].shape == (2, 1, 24, 32)
        expected = model.maps(image).maps
    for task, map in dmtl.Engine(model).maps(image).maps.items():
        torch.testing.assert_close(map, expected[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "rows", "factor"), [(32, 4, 8), (32, 8, 4), (33, 8, 8), (33, 16, 4)])
def test_factor_of(height, rows, factor):
    assert factor_of(torch.empty(1, 1, rows, 1), height) == factor


def test_saved_and_loaded(tmp_path):
    model = small_model(output_stride=4)
    model.save_pretrained(tmp_path)
    again, image = dmtl.from_pretrained(tmp_path), torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(again(image).final["edge"], model(image).final["edge"])


def test_objectives_need_maps_at_one_eighth():
    tasks = {name: make_task(name) for name in ("edge", "sal")}
    model = create_model(small_config(tasks=("edge", "heat"), diffusion="none", output_stride=4))
    config = OptimConfig(objectives={"mtpsl": 1.0})
    with pytest.raises(ConfigError, match=r"optim\.objectives \(mtpsl\).*model\.output_stride = 8, got 4"):
        BatchLoss(model, make_weighting(config, tasks), config)


def test_other_strides_are_refused():
    with pytest.raises(ConfigError, match=r"model\.output_stride"):
        small_config(output_stride=2)
