"""Training from a trained model (optim.weights): what is taken over, what is new, what is refused."""

import pytest
import torch

from dmtl.errors import CheckpointError, ConfigError
from dmtl.models import create_model, from_pretrained
from dmtl.tasks import make_task
from dmtl.train.config import OptimConfig
from dmtl.train.start import start_from
from dmtl.train.trainer import Trainer
from tests.models.cases import TASKS, small_config, small_model

CONDITION = "mtdnet.condition.conv.weight"


@pytest.fixture
def trained(tmp_path):
    model = small_model(seed=5)
    model.save_pretrained(tmp_path / "trained")
    return model, str(tmp_path / "trained")


def test_the_same_tasks(trained):
    model, source = trained
    fresh = create_model(small_config())
    assert start_from(fresh, source) == f"starts from {source}"
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_other_tasks_and_parts(trained):
    """A task that is new, one that means something else, and the skip decoder are new."""
    model, source = trained
    other = make_task("semseg", classes=["sky", "road", "tree", "car"])
    assert other.channels == TASKS["semseg"].channels and other.meaning() != TASKS["semseg"].meaning()
    tasks = [TASKS["heat"], other, make_task("depth"), TASKS["edge"]]
    fresh = create_model(small_config(output_stride=4), tasks)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    said = start_from(fresh, source)
    assert said == (f"starts from {source}; new: semseg, depth, skip decoder; not used: semseg, normals")
    after, known = fresh.state_dict(), model.state_dict()
    for key in after:
        names = key.split(".")
        new = names[0] == "skip" or "semseg" in names or "depth" in names
        if key != CONDITION:
            assert torch.equal(after[key], before[key] if new else known[key]), key
    heat, edge = known[CONDITION][:, [-1]], known[CONDITION][:, [-2]]  # semseg 4, normals 3, edge, heat
    expected = torch.cat([heat, before[CONDITION][:, 1:6], edge], 1)
    assert torch.equal(after[CONDITION], expected)


def test_diffusion_from_a_baseline(tmp_path):
    baseline = small_model(diffusion="none")
    baseline.save_pretrained(tmp_path)
    fresh = create_model(small_config())
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    assert start_from(fresh, str(tmp_path)).endswith("; new: MTDNet")
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("mtdnet.") else baseline.state_dict()[key])


def test_what_is_not_used_is_said(tmp_path):
    small_model(output_stride=4).save_pretrained(tmp_path)
    said = start_from(create_model(small_config(diffusion="none")), str(tmp_path))
    assert said.endswith("; not used: MTDNet, skip decoder")


def test_a_skip_decoder_of_other_signals_starts_anew(tmp_path):
    """Those of logits with one channel would otherwise be repeated for all channels of features."""
    small_model(output_stride=4, diffusion="none").save_pretrained(tmp_path)
    fresh = create_model(small_config(output_stride=4, diffusion="prediction"))
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    said = start_from(fresh, str(tmp_path))
    assert said.endswith("; new: MTDNet, skip decoder; not used: skip decoder")
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items() if k.startswith("skip."))


def test_logits_of_logarithms_are_not_those_of_numbers(tmp_path):
    tasks = {log: make_task("depth", log=log) for log in (False, True)}
    create_model(small_config(), [tasks[True]]).save_pretrained(tmp_path)
    fresh = create_model(small_config(), [tasks[False]])
    assert start_from(fresh, str(tmp_path)).endswith("; new: depth; not used: depth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(width=64), r"model\.width = 32, got 64; set the same"),
        (dict(residual=True), r"model\.residual = False, got True"),
        (dict(backbone_width=16), r"model\.backbone_width = 8, got 16"),
        (
            dict(diffusion="prediction", blocks=3),
            r"model\.diffusion = feature, model\.blocks = 2, got prediction, 3",
        ),
    ],
)
def test_another_architecture(trained, options, message):
    fresh = create_model(small_config(**options))
    with pytest.raises(ConfigError, match=r"optim\.weights: .*trained has " + message):
        start_from(fresh, trained[1])


def test_new_parts_must_not_be_frozen(trained):
    """They would stay random without a word."""
    new_task = create_model(small_config(), [*TASKS.values(), make_task("sal")])
    with pytest.raises(ConfigError, match=r"optim\.freeze: 'initial' has initial\.\w+\.sal.* stay random"):
        start_from(new_task, trained[1], ["initial"])
    decoder = create_model(small_config(output_stride=4))
    with pytest.raises(ConfigError, match=r"optim\.freeze: 'skip' has skip\."):
        start_from(decoder, trained[1], ["skip"])
    assert start_from(decoder, trained[1], ["initial", "mtdnet"]).endswith("; new: skip decoder")


def test_bad_settings(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing-here: no such file"):
        start_from(create_model(small_config()), str(tmp_path / "nothing-here"))
    with pytest.raises(ConfigError, match=r"optim\.backbone_weights must not be set, got 'imagenet'"):
        OptimConfig(weights="six-tasks", backbone_weights="imagenet")
    with pytest.raises(ConfigError, match=r"optim\.mtdnet_start must be 0 if optim\.freeze has mtdnet"):
        OptimConfig(mtdnet_start=0.5, freeze=["mtdnet"])


def test_a_run_starts_from_another_and_resumes_without_it(tmp_path):
    """The first run may be gone when the second one is resumed."""
    common = dict(
        data=dict(
            root="scenes", size=[32, 32], train_count=4, val_count=2, tasks=["edge", "depth"], labels="full"
        ),
        model=dict(backbone_width=8, width=32, blocks=1, decoder_blocks=1),
        device="cpu",
    )
    first = Trainer(common | dict(out=str(tmp_path / "a"), optim=dict(steps=1, batch_size=2)))
    first.fit()
    said = []
    optim = dict(steps=2, batch_size=2, weights=str(tmp_path / "a"), freeze=["initial", "mtdnet"])
    second = common | dict(
        out=str(tmp_path / "b"), optim=optim, model=common["model"] | dict(output_stride=4)
    )
    trainer = Trainer(second, say=said.append)
    assert said == [f"starts from {tmp_path / 'a'}; new: skip decoder"]
    trainer.fit()
    start, end = (from_pretrained(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(end[key], value) for key, value in start.items())
    assert any(end[key].abs().sum() > 0 for key in end if key.startswith("skip.heads"))
    (tmp_path / "a").rename(tmp_path / "gone")
    Trainer(second, resume=True, say=said.append)
    assert len(said) == 1
