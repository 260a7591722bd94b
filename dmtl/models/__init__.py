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
from dmtl.models.weights import load_backbone, load_state

__all__ = [
    "DiffusionMTL",
    "ModelConfig",
    "MultiTaskBaseline",
    "Prediction",
    "build_model",
    "load_backbone",
    "load_model",
    "load_state",
]
