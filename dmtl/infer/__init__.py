"""Inference: images in, maps and pictures out."""

from dmtl.infer.inputs import Failure
from dmtl.infer.output import Summary
from dmtl.infer.predictor import Predictor

__all__ = ["Failure", "Predictor", "Summary"]
