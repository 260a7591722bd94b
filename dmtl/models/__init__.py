"""Models: configuration, initial network, MTDNet, DiffusionMTL and its baselines, converter of the
published checkpoint."""

from dmtl.models.config import ModelConfig
from dmtl.models.diffusion_mtl import (
    DiffusionMTL,
    MultiTaskBaseline,
    Prediction,
    build_model,
    load_model,
)
from dmtl.models.encoder_weights import how_to_get, load_backbone, load_pretrained, pretrained_source
from dmtl.models.weights import load_state

__all__ = [
    "DiffusionMTL",
    "ModelConfig",
    "MultiTaskBaseline",
    "Prediction",
    "build_model",
    "how_to_get",
    "load_backbone",
    "load_model",
    "load_pretrained",
    "load_state",
    "pretrained_source",
]
