"""Built-in configurations; all others are TOML files under `configs/`."""

from __future__ import annotations

import dataclasses

from dmtl.models import ModelConfig
from dmtl.train.config import DataConfig, LogConfig, OptimConfig, RunConfig


def recipe() -> RunConfig:
    """Return the default configuration of `dmtl train`.

    These settings gave the best results on small real data sets: a small network on a pretrained encoder,
    which trains in about 15 to 40 minutes on one core (`docs/results.md`). The published network is in
    `configs/`. If the encoder's weights (extra `dmtl[encoders]`) are not installed, training starts from
    random ones.
    """
    return RunConfig(
        data=DataConfig(size=(128, 160)),
        model=ModelConfig(backbone="efficientnet_lite0", width=96, token_reduction=2),
        optim=OptimConfig(
            backbone_weights="auto", steps=3000, backbone_lr=0.3, mtdnet_lr=0.3, ema=0.99, precision="auto"
        ),
    )


def demo_config() -> RunConfig:
    """Return `configs/scenes-one-label.toml`, the recipe on rendered rooms, shortened to a few minutes."""
    base = recipe()
    return dataclasses.replace(
        base,
        out="runs/demo",
        data=DataConfig(size=(96, 96), train_count=600, val_count=128, scale=(0.75, 1.5)),
        optim=dataclasses.replace(base.optim, steps=400),
        log=LogConfig(every=10, eval_every=200, checkpoint_every=10_000),
    )
