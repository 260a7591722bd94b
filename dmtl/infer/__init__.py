"""Inference: images in, maps and pictures out."""

from dmtl.infer.predictor import Failure, Predictor, Summary

__all__ = ["Failure", "Predictor", "Summary"]
