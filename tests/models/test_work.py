"""The count of the work: against the reference figures, and against torch's own counter on the model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import Published
from dmtl import ops
from dmtl.models import ModelConfig
from dmtl.models.work import STAGES, count, flops
from dmtl.tasks import make_task
from tests.models.cases import small_config, small_model

PASCAL = [
    make_task(name, **options).spec()
    for name, options in {
        "semseg": {"classes": 21}, "human_parts": {"classes": 7}, "sal": {}, "normals": {}, "edge": {},
    }.items()
]  # fmt: skip


def test_published_network():
    """1,351 GFLOP: encoder and embedding 55, decoders 387, MTDNet 909."""
    parts = count(ModelConfig(tasks=PASCAL), (512, 512), published=True)
    giga = {
        "initial": flops(p for p in parts if p.layer.startswith(("backbone", "embed"))),
        "decoders": flops(p for p in parts if p.layer.startswith("decoders")),
        "mtdnet": flops(p for p in parts if p.stage in ("condition", "chain")),
        "all": flops(parts),
    }
    assert {name: round(value / 1e9) for name, value in giga.items()} == {
        "initial": 55, "decoders": 387, "mtdnet": 909, "all": 1351,
    }  # fmt: skip


@pytest.mark.parametrize("diffusion", ["feature", "prediction", "none"])
def test_the_skip_decoder_like_torchs_counter(diffusion):
    """What it adds to a prediction."""
    image, counted = torch.randn(2, 3, 64, 96), []
    for stride in (8, 4):
        model = small_model(diffusion=diffusion, output_stride=stride)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), ops.references():
            model.maps(image, ["semseg", "heat"])
        counted.append(counter.get_total_flops())
    parts = count(model.config, (64, 96), 2, tasks=["semseg", "heat"])
    assert flops(p for p in parts if p.stage == "skip") == counted[1] - counted[0] > 0


@pytest.mark.parametrize("diffusion", ["feature", "prediction"])
def test_like_torchs_counter(diffusion):
    """Every convolution and product of the published execution, but for the tiny time embedding."""
    model, image = small_model(diffusion=diffusion, steps=3), torch.randn(2, 3, 64, 96)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Published(model).maps(image, ["semseg", "heat"])
    parts = count(model.config, (64, 96), 2, tasks=["semseg", "heat"], published=True)
    embedding = 3 * 2 * 2 * 2 * (256 * 32 + 32 * 32)  # steps, tasks, rows
    assert flops(parts) == pytest.approx(counter.get_total_flops() - embedding, rel=1e-9)


def test_what_folding_saves():
    config = ModelConfig(tasks=PASCAL)
    published, folded = (count(config, (512, 512), published=p) for p in (True, False))

    def of(parts, stage):
        return flops(part for part in parts if part.stage == stage)

    assert of(published, "initial") == of(folded, "initial")
    assert of(folded, "condition") < of(published, "condition") / 4
    per_step = 5 * (2 * 4096 * 512 * 512 + 2 * 256 * 512 * 512)  # the 1x1, and the first block's query
    assert of(published, "chain") - of(folded, "chain") == 2 * per_step


def test_grows_as_it_should():
    config = small_config(steps=2)
    one = count(config, (64, 64))
    assert flops(count(config, (64, 64), 3)) == 3 * flops(one)
    assert flops(count(config, (50, 33))) == flops(one)  # padded to multiples of 32
    steps = [flops(count(config, (64, 64), steps=n)) for n in (1, 2, 3)]
    assert steps[2] - steps[1] == steps[1] - steps[0] > 0
    assert flops(one) == steps[1]
    assert flops(count(config, (64, 64), tasks=["edge"])) < flops(one)
    assert {part.stage for part in one} == set(STAGES) - {"skip"}
    baseline = count(small_config(diffusion="none"), (64, 64), tasks=["edge"])
    assert {part.stage for part in baseline} == {"initial", "decode"}
    assert not any("semseg" in part.layer for part in baseline)
