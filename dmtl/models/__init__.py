"""Models: configuration, initial network, MTDNet, DiffusionMTL and its baselines; creation, loading and
conversion."""

from dmtl.models.config import ModelConfig
from dmtl.models.create import create_model
from dmtl.models.diffusion_mtl import DiffusionMTL, MultiTaskBaseline
from dmtl.models.encoder_weights import how_to_get, load_backbone, load_pretrained, pretrained_source
from dmtl.models.outputs import Maps, Prediction
from dmtl.models.pretrained import from_pretrained
from dmtl.models.weights import load_state

__all__ = [
    "DiffusionMTL",
    "Maps",
    "ModelConfig",
    "MultiTaskBaseline",
    "Prediction",
    "create_model",
    "from_pretrained",
    "how_to_get",
    "load_backbone",
    "load_pretrained",
    "load_state",
    "pretrained_source",
]
