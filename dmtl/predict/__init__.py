"""Prediction: read images and videos, write maps and pictures."""

from dmtl.predict.inputs import Failure
from dmtl.predict.outputs import Summary
from dmtl.predict.predictor import Predictor

__all__ = ["Failure", "Predictor", "Summary"]
