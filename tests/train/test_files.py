"""The log and the moving average."""

import json

import torch

from dmtl.train.ema import MovingAverage
from dmtl.train.log import RunLog
from tests.models.cases import small_model


def test_log_rows(tmp_path):
    log = RunLog(tmp_path)
    log.write("train", 1, loss=0.5)
    log.write("eval", 2, metrics={"edge": {"loss": 1.0}})
    log.close()
    assert RunLog.read(tmp_path / "log.jsonl") == [
        {"event": "train", "step": 1, "loss": 0.5},
        {"event": "eval", "step": 2, "metrics": {"edge": {"loss": 1.0}}},
    ]
    assert RunLog.read(tmp_path / "nothing.jsonl") == []


def test_resumed_log_drops_what_will_come_again(tmp_path):
    rows = [{"event": "train", "step": step} for step in range(1, 6)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"event": "train", "st'
    (tmp_path / "log.jsonl").write_text(text)
    log = RunLog(tmp_path, resume_step=3)
    log.write("train", 4)
    log.close()
    assert RunLog.read(tmp_path / "log.jsonl") == rows[:4]
    RunLog(tmp_path, resume_step=0).close()
    assert RunLog.read(tmp_path / "log.jsonl") == []


def test_moving_average():
    model = small_model(tasks=("edge",), diffusion="none")
    average = MovingAverage(model, 0.5)
    key = "initial.embed.weight"
    expected = model.state_dict()[key].clone()
    for step, decay in enumerate([0.1, 2 / 11, 3 / 12]):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.update(step)
        expected = decay * expected + (1 - decay) * model.state_dict()[key]
    torch.testing.assert_close(average.average.state_dict()[key], expected)
    average.update(10**6)
    torch.testing.assert_close(
        average.average.state_dict()[key], 0.5 * expected + 0.5 * model.state_dict()[key]
    )
    model.initial.backbone.bn1.num_batches_tracked += 3
    average.update(0)
    assert (
        average.average.initial.backbone.bn1.num_batches_tracked
        == model.initial.backbone.bn1.num_batches_tracked
    )
    assert not average.average.training and not any(p.requires_grad for p in average.average.parameters())
