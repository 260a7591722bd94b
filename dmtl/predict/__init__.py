"""Prediction: image files and videos in, maps and pictures out."""

from dmtl.predict.inputs import Failure
from dmtl.predict.outputs import Summary
from dmtl.predict.predictor import Predictor

__all__ = ["Failure", "Predictor", "Summary"]
