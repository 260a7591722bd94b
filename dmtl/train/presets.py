"""Configurations that the package brings along; everything else stands in TOML files under `configs/`."""

from __future__ import annotations

from dmtl.models import ModelConfig
from dmtl.train.config import DataConfig, LogConfig, OptimConfig, RunConfig


def demo_config() -> RunConfig:
    """Six tasks from rendered rooms with one label each, small enough for a few minutes on two CPU cores."""
    return RunConfig(
        out="runs/demo",
        data=DataConfig(
            root="scenes", labels="one-label", size=(96, 96), train_count=600, val_count=96, scale=(0.75, 1.5)
        ),
        model=ModelConfig(backbone_width=32, width=96),
        optim=OptimConfig(steps=600, batch_size=8, lr=1e-3, precision="fp32"),
        log=LogConfig(every=10, eval_every=200, checkpoint_every=1000),
    )
