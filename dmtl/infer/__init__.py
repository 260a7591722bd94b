"""Inference: images in, maps and pictures out."""

from dmtl.infer.engine import Engine
from dmtl.infer.inputs import Failure
from dmtl.infer.output import Summary
from dmtl.infer.predictor import Predictor

__all__ = ["Engine", "Failure", "Predictor", "Summary"]
