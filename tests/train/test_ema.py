"""The moving average beside frozen parts, skipped steps and sharded parameters."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dmtl.train.config import OptimConfig
from dmtl.train.ema import MovingAverage
from dmtl.train.optim import optimizer_for, set_train
from tests.models.cases import small_model


def moved(model, config, count=3, bad=(), run=None):
    """`count` steps with a moving average, those in `bad` with a gradient that is not finite; returns the
    average and its state after every step. `run` calls the model."""
    average, optimizer, states = MovingAverage(model, 0.5), optimizer_for(config, model), []
    torch.manual_seed(0)
    for step in range(count):
        set_train(model, config)
        optimizer.zero_grad()
        prediction = (run or model)(torch.randn(2, 3, 64, 64))
        loss = sum(m.square().mean() for m in prediction.final.values())
        (loss * (torch.inf if step in bad else 1)).backward()
        optimizer.found_inf = torch.tensor(float(step in bad))  # as a GradScaler and `Step` tell it
        optimizer.step()
        average.update(step)
        states.append({name: value.clone() for name, value in average.average.state_dict().items()})
    return average, states


def test_frozen_part_stays_to_the_bit():
    model = small_model(diffusion="none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average, _ = moved(model, OptimConfig(freeze=["initial.backbone"], lr=0.01))
    after = average.average.state_dict()
    same = {name for name in before if torch.equal(after[name], before[name])}
    assert same == {name for name in before if name.startswith("initial.backbone.")}
    assert not any(p.requires_grad for p in average.average.parameters()) and not average.average.training


def test_frozen_statistics_stay_to_the_bit():
    model = small_model(diffusion="none")
    before = {name: value.clone() for name, value in model.named_buffers()}
    average, _ = moved(model, OptimConfig(freeze_bn=True, lr=0.01))
    assert before and all(torch.equal(value, before[n]) for n, value in average.average.named_buffers())


def test_skipped_steps_leave_no_trace_but_time():
    """The average goes on towards the weights that the skipped step left as they were."""
    model = small_model(diffusion="none")
    _, states = moved(model, OptimConfig(lr=0.01, freeze_bn=True), count=4, bad=(2, 3))
    now = dict(model.named_parameters())
    for step, decay in ((2, 3 / 12), (3, 4 / 13)):
        for name, weight in now.items():
            expected = decay * states[step - 1][name] + (1 - decay) * weight
            torch.testing.assert_close(states[step][name], expected)
            assert states[step][name].isfinite().all()


def test_state_is_all_that_a_resumed_run_needs():
    """Weights from a checkpoint are loaded in place, so the average goes on following them."""
    model, again = small_model(diffusion="none"), small_model(seed=1, diffusion="none")
    average, resumed = MovingAverage(model, 0.9), MovingAverage(again, 0.9)
    for p in model.parameters():
        p.data.add_(1)
    average.update(0)
    again.load_state_dict(model.state_dict())
    resumed.average.load_state_dict(average.average.state_dict())
    for m, a in ((model, average), (again, resumed)):
        for p in m.parameters():
            p.data.mul_(2)
        a.update(1)
    for ours, theirs in zip(average.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_shards_are_averaged_as_whole_weights(process_group):
    """Made after FSDP2 has cut the parameters; batch norms' statistics stay whole tensors."""
    from torch.distributed.fsdp import fully_shard

    config = OptimConfig(lr=0.01)
    whole, _ = moved(small_model(diffusion="none"), config)
    model = small_model(diffusion="none")
    for p in model.parameters():
        p.data = p.data.contiguous()
    shards, _ = moved(model, config, run=fully_shard(nn.Sequential(model)))
    for name, value in shards.average.state_dict().items():
        full = value.full_tensor() if hasattr(value, "full_tensor") else value
        torch.testing.assert_close(full, whole.average.state_dict()[name])
    assert all(hasattr(p, "full_tensor") for p in shards.average.parameters())
