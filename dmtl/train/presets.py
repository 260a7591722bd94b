"""Configurations that the package brings along; everything else stands in TOML files under `configs/`."""

from __future__ import annotations

from dmtl.models import ModelConfig
from dmtl.train.config import DataConfig, LogConfig, OptimConfig, RunConfig


def demo_config() -> RunConfig:
    """Six tasks from rendered rooms with one label each: `configs/scenes-one-label.toml`, cut to a few
    minutes."""
    return RunConfig(
        out="runs/demo",
        data=DataConfig(size=(96, 96), train_count=600, val_count=128, scale=(0.75, 1.5)),
        model=ModelConfig(
            diffusion="prediction",
            residual=True,
            detach_signal=True,
            token_reduction=2,
            backbone_width=32,
            width=96,
        ),
        optim=OptimConfig(steps=1200, mtdnet_lr=0.1, initial_weight=1.0, ema=0.99, precision="bf16"),
        log=LogConfig(every=10, eval_every=300, checkpoint_every=10_000),
    )
